from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from truedepth.errors import MethodError
from truedepth.methods.layer_parallel import LayerParallel


def test_published_plan_of_a_model_with_32_layers():
    plan = LayerParallel(end=28, delta=14).plan(32)
    assert plan.notation == "0-13 (14|15) (16|17) (18|19) (20|21) (22|23) (24|25) (26|27) 28-31"
    assert plan.effective_depth == 25
    assert plan.form == "lp"
    assert plan.prefill == "plan"
    assert plan.all_reduces == 2 * 32 - 14


@pytest.mark.parametrize(("num_layers", "depth", "delta", "end"), [(32, 25, 14, 28), (28, 23, 10, 25)])
def test_depth_and_default_end_give_the_published_plans(num_layers, depth, delta, end):
    assert LayerParallel(depth=depth).plan(num_layers) == LayerParallel(end=end, delta=delta).plan(num_layers)


def test_default_end_moves_back_when_delta_needs_it():
    assert LayerParallel(depth=4).plan(8).notation == "(0|1) (2|3) (4|5) (6|7)"


def test_wider_groups_and_the_other_form():
    plan = LayerParallel(end=11, delta=6, group_size=3, form="par").plan(12)
    assert plan.notation == "0-4 (5|6|7) (8|9|10) 11"
    assert plan.form == "par"


def test_no_grouped_layers_is_the_full_model():
    assert LayerParallel(delta=0).plan(5).is_full
    assert LayerParallel(depth=5).plan(5).is_full


@pytest.mark.parametrize(
    ("parameters", "num_layers", "message"),
    [
        ({}, 32, "'delta' and 'depth' are both missing; give exactly one"),
        ({"delta": 4, "depth": 30}, 32, "'delta' and 'depth' are both given; give exactly one"),
        ({"delta": 13, "end": 28}, 32, "delta is 13.*multiple of group_size 2.*nearest: 12 or 14"),
        ({"delta": 10, "group_size": 4}, 32, "delta is 10.*nearest: 8 or 12"),
        ({"delta": 30, "end": 28}, 32, "delta is 30.*at most 28; nearest: 28"),
        ({"depth": 15, "end": 28}, 32, "first 28 layers cannot take 32 layers to depth 15; nearest: 18"),
        ({"depth": 25, "group_size": 3}, 32, "groups of 3.*depth 25; nearest: 24 or 26"),
        ({"depth": 33}, 32, "depth 33; nearest: 32"),
        ({"delta": 2, "end": 33}, 32, "end is 33, but the model has 32 layers"),
        ({"delta": 2, "group_size": 1}, 32, "parameter 'group_size' is 1"),
        ({"delta": 2, "form": "sum"}, 32, "parameter 'form' is 'sum': Input should be 'lp' or 'par'"),
    ],
)
def test_wrong_parameters_say_what_to_do(parameters, num_layers, message):
    with pytest.raises(MethodError, match=message):
        LayerParallel(**parameters).plan(num_layers)


@given(
    groups=st.integers(0, 12),
    group_size=st.integers(2, 6),
    before=st.integers(0, 9),
    after=st.integers(0, 9),
    form=st.sampled_from(["lp", "par"]),
)
def test_every_stretch_that_fits_has_the_promised_depth(groups, group_size, before, after, form):
    delta = groups * group_size
    end = before + delta
    num_layers = end + after
    assume(end >= 1)
    plan = LayerParallel(end=end, delta=delta, group_size=group_size, form=form).plan(num_layers)
    assert plan.effective_depth == num_layers - groups * (group_size - 1)
    assert plan.layers_used == tuple(range(num_layers))
    assert [layer for stage in plan.groups for layer in stage.layers] == list(range(end - delta, end))
    assert plan.form == form


@given(num_layers=st.integers(1, 60), group_size=st.integers(2, 6), data=st.data())
def test_every_reachable_depth_is_reached_with_the_default_end(num_layers, group_size, data):
    groups = data.draw(st.integers(0, num_layers // group_size))
    depth = num_layers - groups * (group_size - 1)
    plan = LayerParallel(depth=depth, group_size=group_size).plan(num_layers)
    assert plan.effective_depth == depth
    assert all(len(stage.layers) == group_size for stage in plan.groups)
