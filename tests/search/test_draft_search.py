"""The search on made-up evidence and costs: what it expects, what it considers, and what it picks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from truedepth.evaluation.agreement import Agreement
from truedepth.measuring.step_costs import StepCosts
from truedepth.plan import DepthPlan, Form
from truedepth.search.draft_search import (
    NUM_SPECULATIVE_TOKENS,
    Candidate,
    DraftSearch,
    Rating,
    break_even,
    expected_tokens,
    rate,
)

LAYERS = 8


def costs_of(
    layer: float = 1.0, head: float = 2.0, each: float = 0.05, pair: float = 2.0, small_head: float = 0.2
) -> StepCosts:
    """Costs that grow by the share `each` with every further token."""
    counts = (1, 2, 3, 5, 9, 17)
    return StepCosts(
        num_layers=LAYERS,
        begin_seconds=0.0,
        layer_seconds={count: layer * (1 + each * (count - 1)) for count in counts},
        head_seconds={count: head * (1 + each * (count - 1)) for count in counts},
        draft_head_seconds={10: small_head},
        pair_seconds={"lp": pair, "par": 2 * layer},
    )


class MadeUp:
    """Evidence in which a draft agrees the more the more layers it runs, and layer 5 does nothing.

    Statistics of hidden states lead elsewhere: to layer 3.
    """

    num_layers = LAYERS

    def __init__(self, shares: Mapping[str, float] | None = None) -> None:
        self.shares = shares or {}
        self.judged: list[str] = []

    def agreements(self, plans: Sequence[DepthPlan]) -> list[Mapping[int | None, Agreement]]:
        self.judged += [plan.notation for plan in plans]
        found = []
        for plan in plans:
            share = self.shares.get(plan.notation, len(set(plan.layers_used) - {5}) / (LAYERS - 1))
            rows = tuple("".join("1" if at < 20 * share else "0" for at in range(20)) for _ in range(3))
            small = tuple(row.replace("1", "0", 4) for row in rows)
            found.append({None: Agreement(rows), 10: Agreement(small)})
        return found

    def losses(self, plans: Sequence[DepthPlan]) -> list[float]:
        return [float(LAYERS - len(set(plan.layers_used) - {5})) for plan in plans]

    def block_influence(self) -> list[float]:
        return [0.0 if layer == 3 else 1.0 for layer in range(LAYERS)]

    def angular_distance(self, block: int) -> list[float]:
        return [0.1 * abs(start - 3) for start in range(LAYERS - block + 1)]


def ratings_of(evidence: MadeUp, costs: StepCosts, vocabularies: Sequence[int] = (10,)) -> list[Rating]:
    return DraftSearch(evidence, evidence, costs, vocabularies).run()


@given(st.floats(0, 1), st.integers(1, 8))
def test_expected_tokens_are_those_of_all_outcomes(acceptance: float, length: int) -> None:
    expected = 0.0
    for outcome in product((True, False), repeat=length):
        chance = 1.0
        for accepted in outcome:
            chance *= acceptance if accepted else 1 - acceptance
        run = next((at for at, accepted in enumerate(outcome) if not accepted), length)
        expected += chance * (1 + run)
    assert expected_tokens(acceptance, length) == pytest.approx(expected)


@given(st.floats(0.1, 2), st.floats(0.1, 5), st.floats(0, 1), st.integers(1, LAYERS - 1))
def test_at_break_even_the_best_length_equals_plain_decoding(
    layer: float, head: float, each: float, depth: int
) -> None:
    costs = costs_of(layer, head, each)
    plan = DepthPlan.of_layers(range(depth), LAYERS)
    limit = break_even(costs, plan, None)

    def best(acceptance: float) -> float:
        return max(expected_tokens(acceptance, d) / costs.round_seconds(plan, None, d) for d in NUM_SPECULATIVE_TOKENS)

    plain = 1 / costs.plain_seconds()
    if limit is None:
        assert best(1.0) < plain
    else:
        assume(limit > 0)
        assert best(limit) == pytest.approx(plain, rel=1e-6)
        assert best(limit - 0.01) < plain


@given(st.lists(st.text("01", min_size=17, max_size=60), min_size=1, max_size=4))
def test_a_pace_is_tokens_over_seconds_of_a_simulated_decoder(rows: list[str]) -> None:
    costs, plan = costs_of(), DepthPlan.of_layers(range(3), LAYERS)
    rating = rate(Candidate("early-exit", plan), Agreement(tuple(rows)), costs)
    for record in rating.speculation:
        tokens = seconds = 0.0
        for row in rows:
            at = 0
            while at + record.num_speculative_tokens <= len(row):
                window = row[at : at + record.num_speculative_tokens]
                gained = len(window) - len(window.lstrip("1")) + 1
                at, tokens = at + gained, tokens + gained
                seconds += costs.round_seconds(plan, None, record.num_speculative_tokens)
        assert record.tokens_per_second == pytest.approx(tokens / seconds)
    assert tuple(record.num_speculative_tokens for record in rating.speculation) == NUM_SPECULATIVE_TOKENS


def test_lengths_that_the_texts_are_too_short_for_are_left_out() -> None:
    rating = rate(Candidate("early-exit", DepthPlan.of_layers([0], LAYERS)), Agreement(("11111",)), costs_of())
    assert [record.num_speculative_tokens for record in rating.speculation] == [1, 2, 3, 4, 5]


def test_the_best_draft_comes_first() -> None:
    """An exit that agrees everywhere is best at the greatest length; with a cheap head at the small vocabulary."""
    ratings = ratings_of(MadeUp({"0 1": 1.0, "0-3": 1.0}), costs_of())
    assert (ratings[0].candidate.exit, ratings[0].candidate.vocabulary) == (2, None)
    assert ratings[0].best.num_speculative_tokens == NUM_SPECULATIVE_TOKENS[-1]
    speeds = [rating.best.tokens_per_second for rating in ratings]
    assert speeds == sorted(speeds, reverse=True)


def test_a_dear_head_makes_the_small_vocabulary_better() -> None:
    ratings = ratings_of(MadeUp({"0 1": 1.0}), costs_of(head=40.0))
    assert (ratings[0].candidate.exit, ratings[0].candidate.vocabulary) == (2, 10)


def test_every_exit_and_every_method_is_considered_once() -> None:
    evidence = MadeUp()
    ratings = ratings_of(evidence, costs_of())
    assert {rating.candidate.exit for rating in ratings} - {None} == set(range(1, LAYERS))
    keys = [rating.candidate.key for rating in ratings]
    assert len(set(keys)) == len(keys)
    assert {"early-exit", "block-influence", "unified-skipping"} <= {rating.candidate.method for rating in ratings}
    assert {rating.candidate.vocabulary for rating in ratings} == {None, 10}
    assert all(rating.candidate.plan.prefill == "plan" for rating in ratings)


@pytest.mark.parametrize(("pair", "forms"), [(2.0, set()), (1.2, {"lp"})])
def test_groups_are_considered_where_they_save_time(pair: float, forms: set[Form]) -> None:
    ratings = ratings_of(MadeUp(), costs_of(pair=pair))
    groups = [rating.candidate for rating in ratings if rating.candidate.plan.groups]
    assert {candidate.plan.form for candidate in groups} == forms
    assert all(candidate.method == "layer-parallel" for candidate in groups)


def test_the_walk_removes_what_is_missed_least_and_stops_where_it_cannot_pay() -> None:
    cheap, dear = MadeUp(), MadeUp()
    ratings_of(cheap, costs_of(each=0.0))
    ratings_of(dear, costs_of(each=1.0))  # five tokens cost five times one: nothing can pay
    walk = ["0-4 6 7", "0-4 6"]
    assert [notation for notation in cheap.judged if notation in walk] == walk
    assert walk[0] in dear.judged and walk[1] not in dear.judged


def test_a_model_of_two_layers_has_one_exit() -> None:
    class Two(MadeUp):
        num_layers = 2

    costs = costs_of().model_copy(update={"num_layers": 2})
    ratings = DraftSearch(Two(), Two(), costs).run()
    assert [rating.candidate.exit for rating in ratings] == [1]
