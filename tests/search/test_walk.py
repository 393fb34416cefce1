"""The search finds the best plan where that can be known by trying all plans, and knows what it cannot reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truedepth.errors import SearchError, UsageError
from truedepth.measuring.costs import MeasuredCosts
from truedepth.plan import DepthPlan, Form, Stage
from truedepth.search.moves import MOVES, neighbours, undo
from truedepth.search.walk import Search, SearchStep, Target

LAYERS = 8


@dataclass
class Known:
    """Losses that follow from prices: of each skipped layer, some pairs of them, and each further layer in a group."""

    skip: Sequence[float]
    both: dict[frozenset[int], float] = field(default_factory=dict)
    group: float = 0.05

    @property
    def num_layers(self) -> int:
        return len(self.skip)

    def block_influence(self) -> Sequence[float]:
        return self.skip

    def angular_distance(self, block: int) -> Sequence[float]:
        raise NotImplementedError

    def losses(self, plans: Sequence[DepthPlan]) -> list[float]:
        return [self._loss(plan) for plan in plans]

    def _loss(self, plan: DepthPlan) -> float:
        skipped = plan.layers_skipped
        single = sum(self.skip[layer] for layer in skipped)
        double = sum(price for pair, price in self.both.items() if pair <= set(skipped))
        beside = sum(len(group.layers) - 1 for group in plan.groups)
        return 2.0 + single + double + self.group * beside


def costs(lp: float = 2.0, par: float = 2.0) -> MeasuredCosts:
    """A layer takes a second, everything else two; a pair takes `lp` or `par` seconds."""
    pairs: dict[Form, float] = {"lp": lp, "par": par}
    return MeasuredCosts(2.0, 1.0, pairs, "Made up.")


def last(path: Sequence[SearchStep]) -> DepthPlan:
    return path[-1].plan


def test_skips_the_cheapest_layers_until_the_speedup_is_reached() -> None:
    known = Known([9, 0.3, 0.1, 0.5, 0.2, 0.7, 0.6, 9])
    path = Search(known, costs(), Target("speedup", 1.25), ["skip"]).walk()
    assert last(path).notation == "0 1 3 5-7"
    assert [step.plan.effective_depth for step in path] == [8, 7, 6]
    assert path[-1].speedup == pytest.approx(10 / 8)


def test_goes_back_on_a_first_choice_that_was_wrong() -> None:
    """Layer 1 alone is the cheapest to skip, but with any other it is the dearest."""
    both = {frozenset({1, other}): 5.0 for other in range(2, 8)}
    known = Known([9, 0.1, 0.2, 0.3, 0.9, 0.9, 0.9, 9], both)
    search = Search(known, costs(), Target("depth", 6), ["skip"])
    path = search.walk()
    assert path[1].plan.layers_skipped == (1,)
    assert last(search.improve(last(path), known)).layers_skipped == (2, 3)


def test_a_gain_too_small_to_hold_on_other_text_is_left_alone() -> None:
    known = Known([9, 0.50, 0.45, 0.9, 0.9, 0.9, 0.9, 9])
    start = DepthPlan.of_layers([0, 2, 3, 4, 5, 6, 7], 8)
    path = Search(known, costs(), Target("depth", 7), ["skip"]).improve(start, known)
    assert [step.plan for step in path] == [start]


def test_improving_keeps_the_speed() -> None:
    """Skipping layer 1 is bought back by pairs only where they are as fast."""
    known = Known([9, 0.9, 0.2, 0.3, 0.9, 0.9, 0.9, 9])
    start = DepthPlan.of_layers([0, 2, 3, 4, 6, 7], 8)
    path = Search(known, costs(lp=1.9), Target("speedup", 1.25), MOVES).improve(start, known)
    assert [step.loss for step in path] == sorted((step.loss for step in path), reverse=True)
    assert all(step.speedup >= 1.25 for step in path)
    assert last(path).layers_skipped == (2, 3)


@given(st.lists(st.floats(0.01, 1), min_size=LAYERS, max_size=LAYERS), st.integers(4, LAYERS - 1))
def test_is_optimal_where_prices_add_up(prices: list[float], depth: int) -> None:
    known = Known(prices)
    path = Search(known, costs(), Target("depth", depth), ["skip"]).walk()
    best = min(sum(removed) for removed in combinations(prices, LAYERS - depth))
    assert path[-1].loss == pytest.approx(2.0 + best)


def test_does_not_put_layers_side_by_side_where_that_saves_no_time() -> None:
    path = Search(Known([0.4] * LAYERS), costs(), Target("speedup", 1.4), MOVES).walk()
    assert not any(step.plan.groups for step in path)


@pytest.mark.parametrize("form", ["lp", "par"])
def test_puts_layers_side_by_side_where_that_pays(form: Form) -> None:
    cheap = costs(**{form: 1.1})
    path = Search(Known([0.4] * LAYERS), cheap, Target("speedup", 1.4), MOVES).walk()
    assert last(path).groups
    assert last(path).form == form
    assert not last(path).layers_skipped


def test_depth_may_be_reached_by_groups_that_save_no_time_here() -> None:
    path = Search(Known([0.4] * LAYERS), costs(), Target("depth", 5), ["lp"]).walk()
    assert last(path).effective_depth == 5
    assert last(path).layers_used == tuple(range(LAYERS))


def test_stays_within_the_perplexity_ratio_and_uses_it_up() -> None:
    known = Known([9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 9])
    path = Search(known, costs(), Target("max_perplexity_ratio", 1.36), ["skip"]).walk()  # exp(0.307)
    assert last(path).effective_depth == LAYERS - 3


def test_a_ratio_that_is_never_exceeded_leaves_a_single_stage() -> None:
    path = Search(Known([0.0] * LAYERS), costs(), Target("max_perplexity_ratio", 2), ["skip"]).walk()
    assert last(path).effective_depth == 1


def test_says_the_largest_speedup_that_can_be_reached() -> None:
    with pytest.raises(SearchError, match=r"speedup of 4 cannot be reached.*largest is 3\.33"):
        Search(Known([0.1] * LAYERS), costs(), Target("speedup", 4), MOVES).walk()


def test_says_that_parallel_layers_bring_nothing_here() -> None:
    with pytest.raises(SearchError, match=r"moves lp: the largest is 1\.00\. Made up\..*--hardware"):
        Search(Known([0.1] * LAYERS), costs(), Target("speedup", 1.1), ["lp"]).walk()


def test_a_depth_beyond_the_model_is_refused() -> None:
    with pytest.raises(SearchError, match="choose 1 to 7"):
        Search(Known([0.1] * LAYERS), costs(), Target("depth", 8), MOVES).walk()


@pytest.mark.parametrize(
    ("kind", "value"),
    [("speedup", 1.0), ("speedup", 0.5), ("speedup", float("nan")), ("max_perplexity_ratio", 1.0), ("depth", 0)],
)
def test_targets_without_sense_are_wrong_usage(kind: str, value: float) -> None:
    with pytest.raises(UsageError, match=kind.replace("_", " ")):
        Target(kind, value)  # type: ignore[arg-type]


def test_losses_that_are_not_numbers_are_passed_over() -> None:
    known = Known([float("nan"), 0.3, 0.2, float("inf"), 0.4, 0.5, 0.6, 0.7])
    path = Search(known, costs(), Target("depth", 6), ["skip"]).walk()
    assert last(path).layers_skipped == (1, 2)


def test_a_model_that_overflows_everywhere_is_not_searched() -> None:
    with pytest.raises(SearchError, match="not a number; load the model with --dtype float32"):
        Search(Known([float("nan")] * LAYERS), costs(), Target("depth", 6), ["skip"]).walk()


@st.composite
def plans(draw: st.DrawFn) -> DepthPlan:
    kept = sorted(draw(st.sets(st.integers(0, LAYERS - 1), min_size=2)))
    stages: list[tuple[int, ...]] = []
    for layer in kept:
        if stages and draw(st.booleans()):
            stages[-1] += (layer,)
        else:
            stages.append((layer,))
    return DepthPlan(tuple(map(Stage, stages)), LAYERS)


@given(plans())
def test_every_move_shortens_by_one_stage_and_can_be_undone(plan: DepthPlan) -> None:
    for move in ("skip", "lp"):
        for shorter in neighbours(plan, move):  # type: ignore[arg-type]
            assert shorter.effective_depth == plan.effective_depth - 1
            if len(shorter.layers_used) < len(plan.layers_used) or all(len(s.layers) < 3 for s in shorter.stages):
                assert plan in list(undo(shorter))


@given(plans())
def test_undoing_brings_back_one_stage(plan: DepthPlan) -> None:
    assert all(longer.effective_depth == plan.effective_depth + 1 for longer in undo(plan))
