"""The acceptance rules: greedy takes the longest match, sampling leaves the target's distribution exactly."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from truedepth.engine.sampling.acceptance import accept_greedy, accept_sampled
from truedepth.engine.sampling.logits_sampler import draw

TOKENS = 3
Law = dict[tuple[int, ...], float]
Rule = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@given(st.data())
def test_greedy_takes_the_longest_match_and_the_targets_next(data: Any) -> None:
    batch, length = data.draw(st.integers(1, 4)), data.draw(st.integers(0, 5))

    def table(width: int) -> list[list[int]]:
        row = st.lists(st.integers(0, 2), min_size=width, max_size=width)
        return [data.draw(row) for _ in range(batch)]

    drafted, chosen = table(length), table(length + 1)
    taken, after = accept_greedy(torch.tensor(drafted, dtype=torch.long).view(batch, length), torch.tensor(chosen))
    for row in range(batch):
        matches = 0
        while matches < length and drafted[row][matches] == chosen[row][matches]:
            matches += 1
        assert (int(taken[row]), int(after[row])) == (matches, chosen[row][matches])


def distributions() -> st.SearchStrategy[tuple[float, ...]]:
    """Of three tokens, in quarters. Any such p / q, and any share of a remainder, is then a multiple of 1/12."""
    cuts = st.lists(st.integers(0, 4), min_size=TOKENS - 1, max_size=TOKENS - 1)
    return cuts.map(lambda cut: tuple((b - a) / 4 for a, b in itertools.pairwise([0, *sorted(cut), 4])))


def law_of_a_step(target: Any, draft: Any, limit: int, rule: Rule) -> Law:
    """The distribution of what one row comes to: the tokens taken and the one after.

    Exact: every drafted run by its probability, with every combination of uniform numbers, of which the middles of
    twelve equal parts stand for all (see `distributions`).
    """
    length = len(draft)
    parts = [(2 * part + 1) / 24 for part in range(12)]
    runs = list(itertools.product(range(TOKENS), repeat=length))
    cases = [(run, numbers) for run in runs for numbers in itertools.product(parts, repeat=length + 1)]
    drafted = torch.tensor([run for run, _ in cases], dtype=torch.long).view(len(cases), length)
    uniforms = torch.tensor([numbers for _, numbers in cases], dtype=torch.float64)
    p, q = (torch.tensor(rows).view(1, -1, TOKENS).expand(len(cases), -1, -1) for rows in (target, draft))
    taken, after = rule(drafted, p, q, uniforms, torch.full((len(cases),), limit))
    law: Law = defaultdict(float)
    for (run, numbers), count, token in zip(cases, taken.tolist(), after.tolist(), strict=True):
        assert 0 <= count <= limit
        weight = 1 / 12 ** len(numbers)
        for position, drawn in enumerate(run):
            weight *= draft[position][drawn]
        law[(*run[:count], token)] += weight
    return law


def samples_of(target: Any) -> Law:
    """The distribution of the target's own samples, a token for each of its rows."""
    law = {}
    for run in itertools.product(range(TOKENS), repeat=len(target)):
        weight = 1.0
        for position, token in enumerate(run):
            weight *= target[position][token]
        law[run] = weight
    return law


def largest_difference(target: Any, draft: Any, limit: int, rule: Rule) -> float:
    """Between the target's own samples, and a step whose open positions are sampled from the target afterwards."""
    whole: Law = defaultdict(float)
    for run, weight in law_of_a_step(target, draft, limit, rule).items():
        for rest, share in samples_of(target[len(run) :]).items():
            whole[run + rest] += weight * share
    return max(abs(whole[run] - weight) for run, weight in samples_of(target).items())


@given(target=st.tuples(distributions(), distributions()), draft=distributions(), limit=st.integers(0, 1))
def test_one_drafted_token_leaves_the_targets_distribution(target: Any, draft: Any, limit: int) -> None:
    assert largest_difference(target, [draft], limit, accept_sampled) < 1e-9


@settings(max_examples=20)
@given(
    target=st.tuples(distributions(), distributions(), distributions()),
    draft=st.tuples(distributions(), distributions()),
    limit=st.integers(0, 2),
)
def test_two_drafted_tokens_leave_the_targets_distribution(target: Any, draft: Any, limit: int) -> None:
    assert largest_difference(target, draft, limit, accept_sampled) < 1e-9


def resampling_from_p(
    drafted: Tensor, target: Tensor, draft: Tensor, uniforms: Tensor, limits: Tensor
) -> tuple[Tensor, Tensor]:
    taken, _ = accept_sampled(drafted, target, draft, uniforms, limits)
    return taken, draw(target[torch.arange(len(taken)), taken], uniforms.gather(1, limits[:, None])[:, 0])


def accepting_by_p(
    drafted: Tensor, target: Tensor, draft: Tensor, uniforms: Tensor, limits: Tensor
) -> tuple[Tensor, Tensor]:
    return accept_sampled(drafted, target, draft.clamp_min(0.999), uniforms, limits)


def accepting_all(
    drafted: Tensor, target: Tensor, draft: Tensor, uniforms: Tensor, limits: Tensor
) -> tuple[Tensor, Tensor]:
    return accept_sampled(drafted, target, draft.clamp_max(0), uniforms, limits)


@pytest.mark.parametrize("rule", [resampling_from_p, accepting_by_p, accepting_all])
def test_the_tests_notice_a_wrong_rule(rule: Rule) -> None:
    target, draft = [(0.5, 0.25, 0.25), (0.0, 0.75, 0.25)], [(0.25, 0.0, 0.75)]
    assert largest_difference(target, draft, 1, accept_sampled) < 1e-9
    assert largest_difference(target, draft, 1, rule) > 0.01


@given(st.data())
def test_a_token_without_probability_never_comes(data: Any) -> None:
    """However the numbers fall, their ends included, and whatever rounding leaves of p - q."""
    size, length, batch = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3)), 4
    weights = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1.0)), min_size=size, max_size=size).filter(any)

    def table(width: int) -> Tensor:
        rows = torch.tensor([[data.draw(weights) for _ in range(width)] for _ in range(batch)])
        return rows / rows.sum(-1, keepdim=True)

    target = table(length + 1)
    draft = target[:, :-1].clone() if data.draw(st.booleans()) else table(length)
    number = st.sampled_from([0.0, 0.25, 0.999999, 1 - 2**-53])
    uniforms = torch.tensor([[data.draw(number) for _ in range(length + 1)] for _ in range(batch)], dtype=torch.float64)
    limits = torch.tensor([data.draw(st.integers(0, length)) for _ in range(batch)])
    drafted = torch.stack([draw(draft[:, position], uniforms[:, position]) for position in range(length)], 1)
    taken, after = accept_sampled(drafted, target, draft, uniforms, limits)
    for row in range(batch):
        count = int(taken[row])
        assert count <= int(limits[row])
        assert target[row, count, after[row]] > 0
        assert all(target[row, position, drafted[row, position]] > 0 for position in range(count))


def test_equal_distributions_take_everything() -> None:
    probs = torch.tensor([[[0.5, 0.3, 0.2]] * 3])
    drafted = torch.tensor([[2, 0]])
    uniforms = torch.tensor([[1 - 2**-53, 1 - 2**-53, 0.6]], dtype=torch.float64)
    taken, after = accept_sampled(drafted, probs, probs[:, :2], uniforms, torch.tensor([2]))
    assert (taken.tolist(), after.tolist()) == ([2], [1])
