from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truedepth.errors import MethodError, TruedepthError
from truedepth.methods.greedy_removal import GreedyRemoval


def test_looks_again_after_each_removal(paper_evidence):
    # Layer 2 goes first. Alone, 3 would be next best, but without 2 it costs a nat more than 1 does.
    evidence = paper_evidence(costs=[5, 0.4, 0.1, 0.2, 3], together={(2, 3): 1.0})
    assert GreedyRemoval(depth=4).plan(evidence).notation == "0 1 3 4"
    assert GreedyRemoval(depth=3).plan(evidence).notation == "0 3 4"
    assert GreedyRemoval(depth=5).plan(evidence).is_full


def test_cost_is_as_documented(paper_evidence):
    evidence = paper_evidence(costs=[0.5, 0.4, 0.3, 0.2, 0.1, 0.6])
    GreedyRemoval(depth=3).plan(evidence)
    assert [len(plans) for plans in evidence.asked] == [6, 5, 4]


def test_more_layers_than_there_are(paper_evidence):
    with pytest.raises(MethodError, match="depth is 4, but the model has 3 layers"):
        GreedyRemoval(depth=4).plan(paper_evidence(costs=[1, 1, 1]))


def test_a_loss_that_overflows(paper_evidence):
    evidence = paper_evidence(costs=[math.nan, 0.3, math.inf])
    assert GreedyRemoval(depth=2).plan(evidence).notation == "0 2"
    with pytest.raises(TruedepthError, match="calibration loss is a finite number for 0 of 2"):
        GreedyRemoval(depth=1).plan(evidence)


@given(costs=st.lists(st.floats(-1, 9), min_size=1, max_size=12), data=st.data())
def test_reaches_every_depth_and_is_best_when_losses_add_up(paper_evidence, costs, data):
    depth = data.draw(st.integers(1, len(costs)))
    evidence = paper_evidence(costs=costs)
    plan = GreedyRemoval(depth=depth).plan(evidence)
    assert plan.effective_depth == depth
    best = 2.0 + sum(sorted(costs)[: len(costs) - depth])
    assert evidence.loss(plan) == pytest.approx(best)
