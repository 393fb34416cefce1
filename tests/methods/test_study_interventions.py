"""Shuffle, merge, prune-range and parallel-range: one change to the layers start, ..., end - 1."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truedepth.errors import MethodError
from truedepth.methods import build_method
from truedepth.methods.merge import Merge
from truedepth.methods.parallel_range import ParallelRange
from truedepth.methods.prune_range import PruneRange
from truedepth.methods.shuffle import Shuffle


def test_prune_range():
    assert PruneRange(start=2, end=5).plan(8).notation == "0 1 5-7"
    assert PruneRange(start=0, end=7).plan(8).notation == "7"


def test_merge_makes_one_layer_of_the_range_or_of_each_group():
    plan = Merge(start=2, end=6).plan(8)
    assert plan.notation == "0 1 (2+3+4+5) 6 7"
    assert plan.stages[2].merged
    assert Merge(start=2, end=6, group_size=2).plan(8).notation == "0 1 (2+3) (4+5) 6 7"


def test_parallel_range_makes_one_group_of_the_range_or_several():
    assert ParallelRange(start=2, end=6).plan(8).notation == "0 1 (2|3|4|5) 6 7"
    plan = ParallelRange(start=0, end=8, group_size=4, form="par").plan(8)
    assert plan.notation == "(0|1|2|3) (4|5|6|7)"
    assert plan.form == "par"


def test_parallel_pairs_are_layer_parallelism():
    pairs = ParallelRange(start=14, end=28, group_size=2).plan(32)
    assert pairs == build_method("layer-parallel", {"end": 28, "delta": 14}).plan(32)


def test_shuffle_repeats_with_its_seed():
    plan = Shuffle(start=3, end=20, seed=5).plan(24)
    assert plan == Shuffle(start=3, end=20, seed=5).plan(24)
    assert plan != Shuffle(start=3, end=20, seed=6).plan(24)
    order = [stage.layers[0] for stage in plan.stages]
    assert order[:3] == [0, 1, 2]
    assert order[20:] == [20, 21, 22, 23]
    assert sorted(order[3:20]) == list(range(3, 20)) != order[3:20]


@pytest.mark.parametrize("name", ["shuffle", "merge", "prune-range", "parallel-range"])
@pytest.mark.parametrize(("start", "end"), [(5, 5), (6, 5), (0, 9), (8, 9)])
def test_a_range_outside_the_model(name, start, end):
    with pytest.raises(MethodError, match=rf"start {start} and end {end} are not a range.*0 <= start < end <= 8"):
        build_method(name, {"start": start, "end": end}).plan(8)


@pytest.mark.parametrize("method", [Merge, ParallelRange])
def test_a_range_that_does_not_divide(method):
    with pytest.raises(MethodError, match=r"range of 5 layers.*groups of 2; choose start and end 4 or 6 layers"):
        method(start=1, end=6, group_size=2).plan(8)
    with pytest.raises(MethodError, match=r"range of 2 layers.*groups of 3; choose start and end 3 layers"):
        method(start=1, end=3, group_size=3).plan(8)
    with pytest.raises(MethodError, match="a single layer; it needs at least two"):
        method(start=1, end=2).plan(8)


def test_pruning_everything():
    with pytest.raises(MethodError, match="remove all 8 layers; leave at least one"):
        PruneRange(start=0, end=8).plan(8)


@st.composite
def stretches(draw):
    """(before, groups, group_size, after) of a range that divides into groups."""
    return tuple(draw(st.integers(*bounds)) for bounds in ((0, 9), (1, 8), (2, 6), (0, 9)))


@given(stretches(), st.sampled_from([Merge, ParallelRange]))
def test_groups_have_the_promised_depth(stretch, method):
    before, groups, group_size, after = stretch
    end = before + groups * group_size
    plan = method(start=before, end=end, group_size=group_size).plan(end + after)
    assert plan.effective_depth == before + groups + after
    assert plan.layers_used == tuple(range(end + after))
    whole = method(start=before, end=end).plan(end + after)
    assert whole.effective_depth == before + 1 + after


@given(st.integers(0, 9), st.integers(1, 30), st.integers(0, 9), st.integers(0, 1000))
def test_shuffle_and_prune_have_the_promised_depth(before, length, after, seed):
    end, num_layers = before + length, before + length + after
    shuffled = Shuffle(start=before, end=end, seed=seed).plan(num_layers)
    assert shuffled.effective_depth == num_layers
    assert shuffled.layers_used == tuple(range(num_layers))
    if before + after:
        pruned = PruneRange(start=before, end=end).plan(num_layers)
        assert pruned.layers_skipped == tuple(range(before, end))
        assert pruned.effective_depth == before + after
