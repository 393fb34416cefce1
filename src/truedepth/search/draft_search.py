"""The search for the draft that makes lossless decoding fastest, from measured agreement and measured costs.

A draft proposes d tokens, of which the target takes those before the first with which it disagrees, and adds one of
its own. What a draft brings is therefore

    expected tokens a second = E[1 + accepted] / seconds of a round that drafts d tokens

and the search rates every candidate by it, at every d. No text is written for that: where a draft agrees is
looked up in texts that the target has written (see `truedepth.evaluation.drafting`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Protocol

from truedepth.evaluation.agreement import Agreement
from truedepth.evaluation.plan_tree import key_of
from truedepth.measuring.step_costs import StepCosts
from truedepth.methods.base import Evidence, EvidenceMethod, LayerMethod
from truedepth.methods.registry import build_method
from truedepth.methods.selection import without
from truedepth.plan import FORMS, DepthPlan, Form
from truedepth.search.draft_results import SpeculationRecord

NUM_SPECULATIVE_TOKENS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
"""How many tokens a draft may propose in a round."""

_SHARES = (7 / 8, 3 / 4, 1 / 2)
"""Parts of the depth at which methods that make one plan a depth are tried."""

_LOOKED = 8
"""Layers that greedy removal looks at in a step."""

_BISECTIONS = 40


@dataclass(frozen=True, slots=True)
class Candidate:
    """A draft that the search considers.

    Attributes:
        method: where its plan comes from.
        vocabulary: how many tokens its head may propose; None: all.
    """

    method: str
    plan: DepthPlan
    vocabulary: int | None = None

    @property
    def key(self) -> str:
        """No two candidates have the same."""
        return f"{key_of(self.plan)}, vocabulary {self.vocabulary or 'whole'}"

    @property
    def exit(self) -> int | None:
        """The number of layers that run, where they are the first ones; None for another plan."""
        depth = self.plan.effective_depth
        return depth if self.plan.stages == DepthPlan.full(self.plan.num_layers).stages[:depth] else None


@dataclass(frozen=True, slots=True)
class Rating:
    """A candidate with its figures.

    Attributes:
        agreement: see `Agreement.share`.
        break_even: the agreement from which the candidate is faster than plain decoding, with as many tokens a round as
            are best then; None if it would not be even if all tokens were accepted.
        speculation: by the number of drafted tokens.
    """

    candidate: Candidate
    agreement: float
    break_even: float | None
    speculation: tuple[SpeculationRecord, ...]

    @property
    def best(self) -> SpeculationRecord:
        return max(self.speculation, key=lambda record: record.tokens_per_second)


class DraftEvidence(Evidence, Protocol):
    """What the search asks about drafts. `losses` are those of predicting the target's tokens.

    `truedepth.evaluation.drafting.TargetTexts` is the implementation for a real model.
    """

    def agreements(self, plans: Sequence[DepthPlan]) -> Sequence[Mapping[int | None, Agreement]]:
        """For each plan its agreement, by the size of the draft vocabulary; None is the whole vocabulary."""
        ...


def expected_tokens(acceptance: float, num_speculative_tokens: int) -> float:
    """Tokens that a round yields if each drafted token is accepted with this probability once those before it are.

    1 + a + a^2 + ... + a^d = (1 - a^(d+1)) / (1 - a), arXiv 2211.17192, eq. 1.
    """
    return sum(acceptance**position for position in range(num_speculative_tokens + 1))


def break_even(costs: StepCosts, plan: DepthPlan, vocabulary: int | None) -> float | None:
    """The acceptance of a token from which a draft is as fast as plain decoding; None if 1 is not enough."""
    seconds = {count: costs.round_seconds(plan, vocabulary, count) for count in NUM_SPECULATIVE_TOKENS}
    needed = 1 / costs.plain_seconds()

    def pays(acceptance: float) -> bool:
        return any(expected_tokens(acceptance, count) / own >= needed for count, own in seconds.items())

    low, high = 0.0, 1.0
    if pays(low):
        return low
    if not pays(high):
        return None
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if pays(middle) else (middle, high)
    return high


def rate(candidate: Candidate, agreement: Agreement, costs: StepCosts) -> Rating:
    """What a candidate brings at each number of drafted tokens that the texts are long enough for."""
    records = []
    for count in NUM_SPECULATIVE_TOKENS:
        if rounds := agreement.rounds(count):
            accepted = fmean(rounds)
            throughput = (1 + accepted) / costs.round_seconds(candidate.plan, candidate.vocabulary, count)
            records.append(
                SpeculationRecord(num_speculative_tokens=count, accepted=accepted, tokens_per_second=throughput)
            )
    limit = break_even(costs, candidate.plan, candidate.vocabulary)
    return Rating(candidate, agreement.share, limit, tuple(records))


@dataclass(frozen=True)
class DraftSearch:
    """A search with everything it looks at. Deterministic, given the evidence and the costs.

    Attributes:
        evidence: judges drafts.
        removal_evidence: cheaper, by which greedy removal chooses layers.
        costs: of the parts of a step.
        vocabularies: sizes of the draft vocabularies that each plan is tried with, besides the whole one.
    """

    evidence: DraftEvidence
    removal_evidence: Evidence
    costs: StepCosts
    vocabularies: Sequence[int] = ()

    def run(self) -> list[Rating]:
        """All candidates, the one with the most expected tokens a second first."""
        found: dict[str, list[Rating]] = {}
        self._rate(self._proposals(), found)
        for plan in self._greedy_removal():
            self._rate([("greedy-removal", plan)], found)
            if found[key_of(plan)][0].agreement < self._hopeless():
                break
        ratings = [rating for own in found.values() for rating in own]
        return sorted(ratings, key=lambda rating: -rating.best.tokens_per_second)

    def _rate(self, proposals: Iterable[tuple[str, DepthPlan]], found: dict[str, list[Rating]]) -> None:
        """Add the ratings of plans that are not found yet, that with the whole vocabulary first."""
        fresh: dict[str, tuple[str, DepthPlan]] = {}
        for method, plan in proposals:
            if key_of(plan) not in found:
                fresh.setdefault(key_of(plan), (method, plan))
        judged = self.evidence.agreements([plan for _, plan in fresh.values()])
        for (method, plan), by_size in zip(fresh.values(), judged, strict=True):
            found[key_of(plan)] = [
                rate(Candidate(method, plan, size), by_size[size], self.costs) for size in (None, *self.vocabularies)
            ]

    def _proposals(self) -> Iterator[tuple[str, DepthPlan]]:
        """Plans by method: every exit, and the plans of methods that make one plan a depth."""
        num_layers = self.evidence.num_layers
        for depth in range(1, num_layers):
            yield "early-exit", self._plan("early-exit", exit=depth)
        depths = sorted({round(share * num_layers) for share in _SHARES} - {0, 1, num_layers})
        for depth in depths:
            for name in ("block-influence", "angular-distance", "unified-skipping"):
                yield name, self._plan(name, depth=depth)
            for form in FORMS:
                if self.costs.worth(form) and 2 * depth >= num_layers:
                    yield "layer-parallel", self._plan("layer-parallel", depth=depth, form=form)

    def _plan(self, name: str, **parameters: int | Form) -> DepthPlan:
        method = build_method(name, parameters)
        if isinstance(method, LayerMethod):
            # How the prompt runs is the target's business.
            return replace(method.plan(self.evidence.num_layers), prefill="plan")
        assert isinstance(method, EvidenceMethod)
        return method.plan(self.evidence)

    def _greedy_removal(self) -> Iterator[DepthPlan]:
        """Greedy removal, one layer after the other, down to half the depth.

        After the first, only those layers are looked at that were missed least when they were last looked at.
        """
        num_layers = self.evidence.num_layers
        missed = dict.fromkeys(range(num_layers), -math.inf)  # by layer, the loss that its removal added
        removed: set[int] = set()
        (loss,) = self.removal_evidence.losses([DepthPlan.full(num_layers)])
        while 2 * (len(missed) - 1) >= num_layers:
            looked = sorted(missed, key=lambda layer: (missed[layer], -layer))[: _LOOKED if removed else None]
            losses = self.removal_evidence.losses([without(removed | {layer}, num_layers) for layer in looked])
            missed |= {layer: without_it - loss for layer, without_it in zip(looked, losses, strict=True)}
            best = min(looked, key=lambda layer: (missed[layer], -layer))
            if not math.isfinite(missed[best]):
                return
            loss += missed.pop(best)
            removed.add(best)
            yield without(removed, num_layers)

    def _hopeless(self) -> float:
        """The agreement below which no plan pays that removes more layers, down to half the depth.

        None of them costs less than the exit at half the depth, which shares all of its layers with the target, and
        agreement falls with every layer that goes.
        """
        num_layers = self.evidence.num_layers
        half = DepthPlan.of_layers(range((num_layers + 1) // 2), num_layers)
        limits = [break_even(self.costs, half, size) for size in (None, *self.vocabularies)]
        return min((limit for limit in limits if limit is not None), default=math.inf)
