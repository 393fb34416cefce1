from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from truedepth.errors import MethodError, TruedepthError
from truedepth.methods.shapley import Shapley


def test_values_of_independent_layers_are_their_costs(paper_evidence):
    costs = [5.0, 0.25, 1.0, 0.5, 3.0]
    values = Shapley(depth=2, samples=4).values(paper_evidence(costs=costs))
    assert values.mean == pytest.approx(costs)
    assert values.standard_error == pytest.approx([0] * 5)
    assert values.samples == 4


def test_plan_removes_the_least_valuable_layers(paper_evidence):
    evidence = paper_evidence(costs=[5.0, 0.25, 1.0, 0.5, 3.0])
    assert Shapley(depth=3).plan(evidence).notation == "0 2 4"
    assert Shapley(depth=5).plan(evidence).is_full


def test_interaction_is_shared_as_the_formula_says(paper_evidence):
    # With k uniform in {0, 1, 2} others missing of 5, layer 4 is among them with probability (0 + 1 + 2)/3/5.
    evidence = paper_evidence(costs=[1.0] * 6, together={(3, 4): 2.0})
    values = Shapley(depth=3, samples=400).values(evidence)
    for layer in (3, 4):
        error = abs(values.mean[layer] - (1.0 + 2.0 * 0.2))
        assert 0 < values.standard_error[layer] < 0.05
        assert error < 4 * values.standard_error[layer]
    assert values.mean[0] == pytest.approx(1.0)


def test_one_removal_is_leaving_each_layer_out_alone(paper_evidence):
    evidence = paper_evidence(costs=[1.0, 2.0, 3.0, 4.0], together={(0, 1): 9.0})
    values = Shapley(depth=2, removals=1).values(evidence)
    assert values.mean == pytest.approx([1, 2, 3, 4])
    assert {plan.effective_depth for plan in evidence.asked[0]} == {4, 3}


def test_cost_is_bounded_and_asked_for_at_once(paper_evidence):
    evidence = paper_evidence(costs=[0.1 * layer for layer in range(7)])
    Shapley(depth=4, samples=5).plan(evidence)
    (plans,) = evidence.asked
    assert 7 + 1 < len(plans) <= 5 * 7 + 1
    assert len(set(plans)) == len(plans)
    assert min(plan.effective_depth for plan in plans) == 4


def test_the_seed_decides(paper_evidence):
    def estimate(seed):
        evidence = paper_evidence(costs=[1.0] * 6, together={(0, 1): 1.0, (2, 4): 3.0})
        return Shapley(depth=3, samples=3, seed=seed).values(evidence)

    assert estimate(7) == estimate(7)
    assert estimate(7) != estimate(8)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"depth": 5}, "depth is 5, but the model has 4 layers; choose 1 to 4"),
        ({"depth": 2, "removals": 4}, "removals is 4, but a model with 4 layers.*choose 1 to 3"),
        ({"depth": 2, "samples": 1}, "parameter 'samples' is 1"),
        ({}, "parameter 'depth' is missing"),
    ],
)
def test_wrong_parameters_say_what_to_do(paper_evidence, parameters, message):
    with pytest.raises(MethodError, match=message):
        Shapley(**parameters).plan(paper_evidence(costs=[1.0] * 4))


def test_a_loss_that_overflows(paper_evidence):
    with pytest.raises(TruedepthError, match=r"calibration loss of plan '.*' is nan; load.*float32"):
        Shapley(depth=2).plan(paper_evidence(costs=[1.0, math.nan, 1.0]))


@settings(max_examples=50)
@given(costs=st.lists(st.floats(-1, 9), min_size=2, max_size=12), data=st.data())
def test_reaches_every_depth(paper_evidence, costs, data):
    depth = data.draw(st.integers(1, len(costs)))
    removals = data.draw(st.none() | st.integers(1, len(costs) - 1))
    method = Shapley(depth=depth, samples=2, removals=removals, seed=data.draw(st.integers(0, 99)))
    evidence = paper_evidence(costs=costs)
    plan = method.plan(evidence)
    assert plan.effective_depth == depth
    least = sum(sorted(costs)[: len(costs) - depth])
    assert sum(costs[layer] for layer in plan.layers_skipped) == pytest.approx(least, abs=1e-9)
