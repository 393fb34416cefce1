"""The depth plan: notation, figures, and errors that name the wrong token."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from truedepth.errors import PlanError, UsageError
from truedepth.plan import FORMS, PREFILLS, DepthPlan, Form, Stage


@st.composite
def plans(draw: st.DrawFn) -> DepthPlan:
    """Any valid plan: some of the layers, in any order, cut into stages anywhere."""
    total = draw(st.integers(1, 12))
    order = draw(st.permutations(range(total)))
    used = order[: draw(st.integers(1, total))]
    cuts = draw(st.sets(st.integers(1, len(used) - 1))) if len(used) > 1 else set()
    bounds = [0, *sorted(cuts), len(used)]
    stages = []
    for start, end in pairwise(bounds):
        merged = end - start > 1 and draw(st.booleans())
        stages.append(Stage(tuple(used[start:end]), merged))
    prefill = "plan" if any(stage.merged for stage in stages) else draw(st.sampled_from(PREFILLS))
    return DepthPlan(tuple(stages), total, draw(st.sampled_from(FORMS)), prefill)


class TestNotation:
    @pytest.mark.parametrize(
        ("notation", "stages"),
        [
            ("0", [(0,)]),
            ("0-3", [(0,), (1,), (2,), (3,)]),
            ("5-5", [(5,)]),
            ("0 1 (2|3) 6", [(0,), (1,), (2, 3), (6,)]),
            ("(5|3|1)", [(5, 3, 1)]),
            ("4 2 0", [(4,), (2,), (0,)]),
        ],
    )
    def test_reads(self, notation: str, stages: list[tuple[int, ...]]) -> None:
        assert [stage.layers for stage in DepthPlan.parse(notation, 8).stages] == stages

    @pytest.mark.parametrize("notation", ["0-3  (4|5)\n6", " 0-3 ( 4 | 5 ) 6 ", "0-3(4|5)6"])
    def test_white_space_is_free(self, notation: str) -> None:
        assert DepthPlan.parse(notation, 8) == DepthPlan.parse("0-3 (4|5) 6", 8)

    def test_merges(self) -> None:
        stages = DepthPlan.parse("0 (1+2+3) (4|5)", 6).stages
        assert [stage.merged for stage in stages] == [False, True, False]
        assert [stage.is_group for stage in stages] == [False, False, True]

    @pytest.mark.parametrize(
        ("layers", "printed"),
        [([0, 1, 2], "0-2"), ([0, 1], "0 1"), ([3, 2, 1], "3 2 1"), ([0, 2, 3, 4, 7], "0 2-4 7")],
    )
    def test_three_or_more_in_a_row_print_as_a_range(self, layers: list[int], printed: str) -> None:
        assert DepthPlan.of_layers(layers, 8).notation == printed

    def test_groups_interrupt_ranges(self) -> None:
        plan = DepthPlan(tuple(map(Stage, [(0,), (1,), (2,), (3, 4), (5,), (6,), (7,)])), 8)
        assert str(plan) == "0-2 (3|4) 5-7"

    @given(plans())
    def test_round_trip(self, plan: DepthPlan) -> None:
        assert DepthPlan.parse(plan.notation, plan.num_layers, plan.form, plan.prefill) == plan


class TestWrongNotation:
    """Each message has the token, its column, and what is wrong with it."""

    @pytest.mark.parametrize(
        ("notation", "token", "column", "problem"),
        [
            ("0-3 x 5", "x", 5, "expected a layer"),
            ("0-3, 5", "0-3,", 1, "expected a layer"),
            ("0 -1", "-1", 3, "expected a layer"),
            ("0 1.5", "1.5", 3, "expected a layer"),
            ("0-", "0-", 1, "expected a layer"),
            ("0-1-2", "0-1-2", 1, "expected a layer"),
            ("0 (1|2", "(", 3, "expected a layer"),
            ("0 1|2)", "1|2", 3, "expected a layer"),
            ("0 1)", ")", 4, "expected a layer"),
            ("0 ((1|2)|3)", "(", 3, "expected a layer"),
            ("0 (1)", "(1)", 3, "at least two"),
            ("0 ()", "()", 3, "at least two"),
            ("0 (1|)", "(1|)", 3, "at least two"),
            ("0 (1|a)", "(1|a)", 3, "at least two"),
            ("0 (1-2|3)", "(1-2|3)", 3, "at least two"),
            ("0 (1|2+3)", "(1|2+3)", 3, "not both"),
            ("0-2 5-4", "5-4", 5, "upwards"),
            ("0-2 8", "8", 5, "layer 8 is out of range: the model has 8 layers (0 to 7)"),
            ("0-8", "0-8", 1, "layer 8 is out of range"),
            ("0 (6|9)", "(6|9)", 3, "layer 9 is out of range"),
            ("0-3 2", "2", 5, "layer 2 appears twice"),
            ("3 0-4", "0-4", 3, "layer 3 appears twice"),
            ("0 (1|2) (2|3)", "(2|3)", 9, "layer 2 appears twice"),
            ("0 (1+2) 1", "1", 9, "layer 1 appears twice"),
            ("0 (1|1)", "(1|1)", 3, "names a layer twice"),
            ("0 " + "9" * 5000, "9" * 5000, 3, "expected a layer"),
        ],
    )
    def test_names_token_and_column(self, notation: str, token: str, column: int, problem: str) -> None:
        with pytest.raises(PlanError) as caught:
            DepthPlan.parse(notation, 8)
        message = str(caught.value)
        assert f"token '{token}' at column {column}: " in message
        assert problem in message
        assert f"plan '{notation}'" in message

    @pytest.mark.parametrize("notation", ["", "   ", "\n"])
    def test_empty(self, notation: str) -> None:
        with pytest.raises(PlanError, match="the plan is empty"):
            DepthPlan.parse(notation, 8)

    @given(st.text(alphabet="0123456789|+()- x,"))
    def test_any_text_is_a_plan_or_a_plan_error(self, notation: str) -> None:
        try:
            plan = DepthPlan.parse(notation, 8)
        except PlanError:
            return
        assert DepthPlan.parse(plan.notation, 8) == plan

    def test_is_a_usage_error(self) -> None:
        assert issubclass(PlanError, UsageError)
        assert PlanError.exit_code == 2


class TestWrongValues:
    def test_stage_without_layers(self) -> None:
        with pytest.raises(PlanError, match="no layers"):
            Stage(())

    def test_stage_with_a_layer_twice(self) -> None:
        with pytest.raises(PlanError, match=r"stage '\(2\|2\)' names a layer twice"):
            Stage((2, 2))

    def test_negative_layer(self) -> None:
        with pytest.raises(PlanError, match="stage '-1' has a negative layer number"):
            Stage((-1,))

    def test_merge_of_one(self) -> None:
        with pytest.raises(PlanError, match="merges a single layer"):
            Stage((1,), merged=True)

    def test_overlapping_groups(self) -> None:
        with pytest.raises(PlanError, match=r"stage '\(2\|3\)' uses layer 2, which stage '\(1\|2\)' already runs"):
            DepthPlan((Stage((1, 2)), Stage((2, 3))), 8)

    def test_out_of_range(self) -> None:
        with pytest.raises(PlanError, match=r"stage '\(7\|8\)' uses layer 8, but the model has 8 layers"):
            DepthPlan((Stage((7, 8)),), 8)

    def test_no_stages(self) -> None:
        with pytest.raises(PlanError, match="the plan is empty"):
            DepthPlan((), 8)

    def test_unknown_form(self) -> None:
        with pytest.raises(PlanError, match="unknown form 'seq'; choose one of: lp, par"):
            DepthPlan.parse("0-3", 4, form="seq")  # type: ignore[arg-type]

    def test_unknown_prefill(self) -> None:
        with pytest.raises(PlanError, match="unknown prefill 'half'; choose one of: plan, full"):
            DepthPlan.parse("0-3", 4, prefill="half")  # type: ignore[arg-type]

    def test_full_prefill_with_merged_layers(self) -> None:
        with pytest.raises(PlanError, match="merged layers cannot prefill every layer"):
            DepthPlan.parse("0 (1+2) 3", 4, prefill="full")

    def test_frozen(self) -> None:
        plan = DepthPlan.full(2)
        with pytest.raises(dataclasses.FrozenInstanceError):
            plan.form = "par"  # type: ignore[misc]


class TestFigures:
    def test_full(self) -> None:
        plan = DepthPlan.full(4)
        assert plan.is_full
        assert plan.notation == "0-3"
        assert (plan.effective_depth, plan.layers_used, plan.layers_skipped) == (4, (0, 1, 2, 3), ())

    @pytest.mark.parametrize("notation", ["0-2", "1 0 2 3", "(0|1) 2 3", "(0+1) 2 3"])
    def test_not_full(self, notation: str) -> None:
        assert not DepthPlan.parse(notation, 4).is_full

    def test_layer_parallel_of_the_paper(self) -> None:
        plan = DepthPlan.parse("0-13 (14|15) (16|17) (18|19) (20|21) (22|23) (24|25) (26|27) 28-31", 32)
        assert plan.effective_depth == 25
        assert plan.all_reduces == 2 * 32 - 14
        assert plan.with_form("par").all_reduces == 2 * 18 + 7

    def test_merged_layer_costs_what_one_layer_costs(self) -> None:
        assert DepthPlan.parse("0 (1+2)", 3, form="par").all_reduces == 4

    @given(plans())
    def test_figures_agree_with_each_other(self, plan: DepthPlan) -> None:
        assert plan.effective_depth == len(plan.stages)
        assert sorted(plan.layers_used + plan.layers_skipped) == list(range(plan.num_layers))
        assert not set(plan.layers_used) & set(plan.layers_skipped)
        assert set(plan.groups) <= set(plan.stages)
        in_par = plan.with_form("par")
        assert plan.with_form("lp").all_reduces == 2 * plan.effective_depth
        assert in_par.all_reduces == 2 * plan.effective_depth - len(plan.groups)

    def test_dictionary(self) -> None:
        plan = DepthPlan.parse("0 1 (2|3) 6", 8, form="par", prefill="full")
        assert plan.to_dict() == {
            "notation": "0 1 (2|3) 6",
            "num_layers": 8,
            "stages": [[0], [1], [2, 3], [6]],
            "effective_depth": 4,
            "layers_used": [0, 1, 2, 3, 6],
            "form": "par",
            "prefill": "full",
            "all_reduces": 7,
        }

    @given(plans())
    def test_dictionary_is_json_and_holds_the_plan(self, plan: DepthPlan) -> None:
        data = json.loads(json.dumps(plan.to_dict()))
        assert DepthPlan.parse(data["notation"], data["num_layers"], data["form"], data["prefill"]) == plan


class TestCommonPrefix:
    @pytest.mark.parametrize(
        ("one", "other", "form", "count"),
        [
            ("0-5", "0-5", "lp", 6),
            ("0-5", "0-2", "lp", 3),
            ("0-5", "1-5", "lp", 0),
            ("0 (1|2) 3", "0 (1|2) 5", "lp", 2),
            ("0 (1|2) 3", "0 (1|2) 3", "par", 1),
            ("0 (1|2) 3", "0 (2|1) 3", "lp", 1),
            ("0 1 2", "0 1 (2|3)", "par", 2),
            ("0 (1+2) 3", "0 (1+2) 3", "par", 3),
            ("0 (1+2) 3", "0 (1|2) 3", "lp", 1),
        ],
    )
    def test_stages_that_compute_alike(self, one: str, other: str, form: Form, count: int) -> None:
        assert DepthPlan.parse(one, 6).common_prefix(DepthPlan.parse(other, 6, form)) == count

    @given(st.data())
    def test_is_the_longest_beginning_that_both_have(self, data: st.DataObject) -> None:
        """Of either order, whatever the prompt runs; plans are mostly alike at first, and one may end there."""
        one = data.draw(plans())
        kept = one.stages[: data.draw(st.integers(0, one.effective_depth))]
        free = sorted(set(range(one.num_layers)) - {layer for stage in kept for layer in stage.layers})
        tail = data.draw(st.lists(st.sampled_from(free), unique=True)) if free else []
        assume(kept or tail)
        stages = kept + tuple(Stage((layer,)) for layer in tail)
        other = DepthPlan(stages, one.num_layers, data.draw(st.sampled_from(FORMS)))

        def beginning(plan: DepthPlan, count: int) -> object:
            stages = plan.stages[:count]
            return stages, plan.form if any(stage.is_group for stage in stages) else None

        shortest = min(one.effective_depth, other.effective_depth)
        alike = [count for count in range(shortest + 1) if beginning(one, count) == beginning(other, count)]
        assert one.common_prefix(other) == other.common_prefix(one) == max(alike)
        assert alike == list(range(max(alike) + 1))
