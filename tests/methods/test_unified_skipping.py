from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from truedepth.errors import MethodError
from truedepth.methods.unified_skipping import UnifiedSkipping


@pytest.mark.parametrize(
    ("speedup", "kept"),
    [
        (2, [*range(0, 29, 2), 31]),
        (3, [*range(0, 25, 3), 31]),
        (5, [0, 6, 12, 18, 24, 31]),
        (1.5, [*range(20), 31]),
        (2.5, [*range(0, 21, 2), 31]),
        (16, [0, 31]),
    ],
)
def test_published_rule_of_32_layers(speedup, kept):
    plan = UnifiedSkipping(rule="published", speedup=speedup).plan(32)
    assert [stage.layers for stage in plan.stages] == [(layer,) for layer in kept]
    assert plan.prefill == "full"


@pytest.mark.parametrize(
    ("speedup", "notation"),
    [
        (5, "0 6 12 19 25 31"),
        (2.5, "0 3 6 8 11 14 17 20 23 25 28 31"),
        (1.5, "0 2 3 5 6 8 9 11 12 14 16 17 19 20 22 23 25 26 28 29 31"),
    ],
)
def test_balanced_rule_is_the_default_and_takes_fractions(speedup, notation):
    plan = UnifiedSkipping(speedup=speedup).plan(32)
    assert plan.notation == notation
    assert plan.prefill == "full"


def test_speedup_that_binary_fractions_round_down():
    # 33 / 1.1 is 29.999999999999996 in floating point.
    assert UnifiedSkipping(speedup=1.1).plan(33).effective_depth == 30


def test_depth_instead_of_speedup():
    assert UnifiedSkipping(depth=6).plan(32) == UnifiedSkipping(speedup=5).plan(32)


def test_a_model_of_one_layer_keeps_it():
    assert UnifiedSkipping(depth=1).plan(1).is_full
    assert UnifiedSkipping(depth=1, rule="published").plan(1).is_full


@pytest.mark.parametrize("rule", ["balanced", "published"])
@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "'speedup' and 'depth' are both missing"),
        ({"speedup": 2, "depth": 16}, "'speedup' and 'depth' are both given"),
        ({"speedup": 20}, "1 of 32 layers would be kept.*speedup of at most 16"),
        ({"speedup": 40}, "0 of 32 layers would be kept"),
        ({"depth": 1}, "1 of 32 layers would be kept.*keep at least 2"),
        ({"depth": 33}, "depth is 33, but the model has 32 layers; choose 1 to 32"),
        ({"speedup": 1}, "parameter 'speedup' is 1: Input should be greater than 1"),
        ({"speedup": float("inf")}, "parameter 'speedup' is inf"),
        ({"speedup": float("nan")}, "parameter 'speedup' is nan"),
    ],
)
def test_wrong_parameters_say_what_to_do(rule, parameters, message):
    with pytest.raises(MethodError, match=message):
        UnifiedSkipping(rule=rule, **parameters).plan(32)


@given(num_layers=st.integers(2, 200), rule=st.sampled_from(["balanced", "published"]), data=st.data())
def test_first_and_last_are_kept_at_every_depth(num_layers, rule, data):
    depth = data.draw(st.integers(2, num_layers))
    plan = UnifiedSkipping(depth=depth, rule=rule).plan(num_layers)
    assert plan.effective_depth == depth
    assert plan.layers_used[0] == 0
    assert plan.layers_used[-1] == num_layers - 1
    assert [stage.layers[0] for stage in plan.stages] == list(plan.layers_used)


@given(num_layers=st.integers(2, 200), data=st.data())
def test_balanced_gaps_differ_by_at_most_one(num_layers, data):
    kept = UnifiedSkipping(depth=data.draw(st.integers(2, num_layers))).plan(num_layers).layers_used
    gaps = [after - before for before, after in pairwise(kept)]
    assert max(gaps) - min(gaps) <= 1


@given(num_layers=st.integers(2, 200), speedup=st.floats(1.01, 100))
def test_at_least_the_target_ratio_of_layers(num_layers, speedup):
    assume(num_layers / speedup >= 2)
    plan = UnifiedSkipping(speedup=speedup).plan(num_layers)
    assert num_layers / plan.effective_depth >= speedup * (1 - 1e-9)
    assert num_layers / (plan.effective_depth + 1) < speedup
