from hypothesis import given
from hypothesis import strategies as st

from truedepth.plan import DepthPlan, Stage
from truedepth.report.layout import Slot, roles, slots


def test_skipped_layers_stand_where_they_would_have_run() -> None:
    plan = DepthPlan.parse("1 2 (3|5) 7", 9)
    assert slots(plan) == (
        Slot("skipped", (0,)),
        Slot("alone", (1,)),
        Slot("alone", (2,)),
        Slot("parallel", (3, 5)),
        Slot("skipped", (4,)),
        Slot("skipped", (6,)),
        Slot("alone", (7,)),
        Slot("skipped", (8,)),
    )


def test_merged_layers_are_told_from_a_group() -> None:
    assert [slot.role for slot in slots(DepthPlan.parse("(0+1) (2|3)", 4))] == ["merged", "parallel"]
    assert roles(DepthPlan.parse("(0+1) (2|3) 5", 6)) == (
        "merged",
        "merged",
        "parallel",
        "parallel",
        "skipped",
        "alone",
    )


@st.composite
def plans(draw: st.DrawFn) -> DepthPlan:
    num_layers = draw(st.integers(1, 12))
    layers = draw(st.permutations(range(num_layers)))[: draw(st.integers(1, num_layers))]
    stages = []
    while layers:
        size = draw(st.integers(1, len(layers)))
        stages.append(Stage(tuple(layers[:size]), merged=size > 1 and draw(st.booleans())))
        layers = layers[size:]
    return DepthPlan(tuple(stages), num_layers)


@given(plans())
def test_the_drawing_has_every_layer_once_and_the_stages_in_order(plan: DepthPlan) -> None:
    found = slots(plan)
    assert sorted(layer for slot in found for layer in slot.layers) == list(range(plan.num_layers))
    assert [slot.layers for slot in found if slot.role != "skipped"] == [stage.layers for stage in plan.stages]
    for slot in found:
        assert {roles(plan)[layer] for layer in slot.layers} == {slot.role}
