"""Block influence and angular distance: what they need comes from one forward pass."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truedepth.errors import MethodError, TruedepthError
from truedepth.methods.angular_distance import AngularDistance
from truedepth.methods.block_influence import BlockInfluence


def test_block_influence_removes_the_least_influential_layers(paper_evidence):
    evidence = paper_evidence(costs=[0] * 6, influence=[0.9, 0.2, 0.5, 0.1, 0.3, 0.8])
    assert BlockInfluence(depth=4).plan(evidence).notation == "0 2 4 5"
    assert BlockInfluence(depth=1).plan(evidence).notation == "0"
    assert BlockInfluence(depth=6).plan(evidence).is_full
    assert evidence.asked == []


def test_of_equally_influential_layers_the_deeper_goes_first(paper_evidence):
    evidence = paper_evidence(costs=[0] * 4, influence=[0.5, 0.1, 0.1, 0.5])
    assert BlockInfluence(depth=3).plan(evidence).notation == "0 1 3"


def test_angular_distance_removes_one_block(paper_evidence):
    evidence = paper_evidence(costs=[0] * 6, distances={2: [0.4, 0.3, 0.1, 0.2, 0.3], 5: [0.3, 0.2]})
    assert AngularDistance(depth=4).plan(evidence).notation == "0 1 4 5"
    assert AngularDistance(depth=1).plan(evidence).notation == "0"
    assert AngularDistance(depth=6).plan(evidence).is_full


def test_of_equally_distant_blocks_the_deepest_goes(paper_evidence):
    evidence = paper_evidence(costs=[0] * 4, distances={2: [0.2, 0.1, 0.1]})
    assert AngularDistance(depth=2).plan(evidence).notation == "0 1"


@pytest.mark.parametrize("method", [BlockInfluence, AngularDistance])
def test_more_layers_than_there_are(paper_evidence, method):
    with pytest.raises(MethodError, match="depth is 7, but the model has 6 layers; choose 1 to 6"):
        method(depth=7).plan(paper_evidence(costs=[0] * 6))


def test_values_that_are_not_numbers_are_never_chosen(paper_evidence):
    evidence = paper_evidence(costs=[0] * 3, influence=[math.nan, 0.5, math.inf])
    assert BlockInfluence(depth=2).plan(evidence).notation == "0 2"
    with pytest.raises(TruedepthError, match=r"block influence is a finite number for 1 of 3.*float32"):
        BlockInfluence(depth=1).plan(evidence)


@given(influence=st.lists(st.floats(0, 2), min_size=1, max_size=40), data=st.data())
def test_block_influence_reaches_every_depth(paper_evidence, influence, data):
    depth = data.draw(st.integers(1, len(influence)))
    evidence = paper_evidence(costs=influence, influence=influence)
    plan = BlockInfluence(depth=depth).plan(evidence)
    assert plan.effective_depth == depth
    kept = [influence[layer] for layer in plan.layers_used]
    removed = [influence[layer] for layer in plan.layers_skipped]
    assert max(removed, default=0) <= min(kept)


@given(num_layers=st.integers(1, 30), data=st.data())
def test_angular_distance_reaches_every_depth_with_one_gap(paper_evidence, num_layers, data):
    depth = data.draw(st.integers(1, num_layers))
    block = num_layers - depth
    distances = data.draw(st.lists(st.floats(0, 1), min_size=depth + 1, max_size=depth + 1))
    evidence = paper_evidence(costs=[0] * num_layers, distances={block: distances})
    plan = AngularDistance(depth=depth).plan(evidence)
    assert plan.effective_depth == depth
    skipped = plan.layers_skipped
    assert skipped == tuple(range(skipped[0], skipped[0] + block) if block else ())
