"""A policy that drafts as long as that pays, by what drafting was seen to cost and to bring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from math import prod

from truedepth.engine.drafts.acceptance_estimate import AcceptanceEstimate
from truedepth.engine.drafts.policy import Round
from truedepth.engine.drafts.round_costs import BatchCosts
from truedepth.errors import UsageError

_SHARE = 0.015
"""Part of the time that may be lost against plain decoding; less than 3 %, as the first rounds' costs are guesses."""

_FIRST_ALLOWANCE, _LARGEST_ALLOWANCE = 1.5, 8.0
"""Plain steps that may be lost at the start, and at most at once, however much was gained before."""

_REFRESH = 0.01
"""Part of the time that plain steps may cost while drafting pays; they keep their own time known."""

_FIRST_WAIT, _LONGEST_WAIT = 8, 64
"""Steps between two trials of what is not in use; doubled after each."""

_TRIAL = 6
"""Most steps of a trial."""

_GUESS = (1.0, 0.4)
"""A round's cost where it is unknown, in plain steps: without drafted tokens, and for each of them."""


@dataclass
class Trial:
    """When to look again at what is not in use.

    Attributes:
        due: the step from which on.
    """

    due: int = 0
    _wait: int = _FIRST_WAIT
    _steps: int = 0

    def see(self, now: int, *, hopeful: bool) -> None:
        """Count a step of the trial; if it gave no hope, or was the last, the next trial comes after a longer wait."""
        self._steps += 1
        if not hopeful or self._steps == _TRIAL:
            self.due, self._steps = now + self._wait, 0
            self._wait = min(2 * self._wait, _LONGEST_WAIT)

    def reset(self, now: int) -> None:
        """Nothing is known against it any more, but do not look at once."""
        self.due, self._wait, self._steps = now + _FIRST_WAIT, _FIRST_WAIT, 0


class AdaptivePolicy:
    """Drafts with the draft, and as many tokens, as gives most tokens per second; decodes plainly where none pays.

    Use one for all requests of an engine and its drafts: what it has seen stays. The first steps of each batch size
    are plain, to time them; then each draft is tried with short rounds. Decisions follow from what was seen alone,
    timings among it, so two runs may draft differently: greedy text stays the same, sampled text its distribution.

    **The best round.** Let a round with n drafted tokens take s(n) = base + each * n seconds, and let the draft's
    tokens be taken with probability a. By the renewal-reward theorem, rounds like it make

        r(n) = (1 + a + a^2 + ... + a^n) / s(n)

    tokens per second for each sequence of the batch (with layers in place of seconds: DEL, arXiv 2504.05598,
    "token per layer"). The best rate R is the greatest over all drafts and n, and of plain decoding.

    **How long.** One more token pays if what it is likely to bring costs less than it would at the best rate,

        mean over sequences of [a(c_1) * ... * a(c_k)] * a  >  R * each,

    where a(c) is the acceptance of tokens drafted with confidence c. The left side only falls as k grows, so looking
    one token ahead is enough (the monotone case of Chow and Robbins, 1961). It is also why drafting pays at all just
    if its first token does, confidences or not, where base is a plain step.

    **What it may lose.** An allowance, in plain steps, grows by 1.5 % of each step and by what rounds gain, and falls
    by what they lose against plain decoding, at the costs seen. It starts at one and a half plain steps and is cut
    off at eight. Rounds are only as long as it could bear if all tokens were refused.

    **Looking again.** What is not in use is tried now and then, twice as rarely each time, and at once again while it
    looks better than what is in use. Drafts that are beginnings of the target are mostly judged by `Round.shadow`.

    Args:
        num_drafts: how many drafts the engine is given.
        longest: the most tokens to draft in a round.

    Raises:
        UsageError: no draft, or no token.
    """

    wants_confidence = True

    def __init__(self, num_drafts: int = 1, longest: int = 16) -> None:
        if num_drafts < 1:
            raise UsageError(f"the number of drafts is {num_drafts}; give at least one")
        if longest < 1:
            raise UsageError(f"the most tokens to draft is {longest}; it must be at least 1")
        self.wants_shadow = False
        self._longest = longest
        self._acceptance = [AcceptanceEstimate() for _ in range(num_drafts)]
        self._costs: dict[int, BatchCosts] = {}
        self._trials = [Trial() for _ in range(num_drafts)]
        self._shadow_trial = Trial()
        self._shadowed = frozenset(range(num_drafts))  # what `Round.shadow` tells of, as far as is known
        self._allowance = _FIRST_ALLOWANCE
        self._now = 0
        self._best: int | None = None
        self._best_speedup = 1.0  # R, in tokens per plain step; `_each` in plain steps
        self._drafting = 0
        self._each = 0.0

    def begin(self, batch: int) -> tuple[int, int] | None:
        """Choose between plain decoding and each draft; see `SpeculationPolicy`."""
        self._now += 1
        self.wants_shadow = False
        costs = self._costs_of(batch)
        if not costs.known:
            return None
        self._choose_best(costs)
        if self._best is not None and 1 - 1 / self._best_speedup <= _REFRESH * costs.since_plain:
            return None
        self.wants_shadow = self._affords_shadow(costs)
        draft = self._to_try(costs)
        if draft is None:
            draft = self._best
        if draft is None or self._most(draft, costs) < 1:
            return None
        self._drafting, self._each = draft, costs.line(draft)[1]
        return draft, self._most(draft, costs)

    def goes_on(self, drafted: int, confidences: Sequence[Sequence[float]]) -> bool:
        """Whether the next token is likely to bring more than it costs; see `SpeculationPolicy`."""
        known = self._acceptance[self._drafting]
        reached = [prod(map(known.of, own)) for own in confidences] or [known.acceptance_rate**drafted]
        return sum(reached) / len(reached) * known.acceptance_rate > self._best_speedup * self._each

    def note(self, step: Round) -> None:
        """Learn costs and acceptance from a step; see `SpeculationPolicy`."""
        costs = self._costs_of(len(step.accepted))
        if not step.shadow:  # it may be among the seconds
            costs.see(step)
        if step.draft is not None:
            self._see_tokens(step.draft, step)
        if not costs.known:
            return
        self._settle(step, costs)
        if step.draft is not None and step.draft != self._best:
            seen = sum(min(count + 1, step.drafted) for count in step.accepted)
            hopeful = self._speedup(step.draft, sum(step.accepted) / seen, costs) > self._best_speedup
            self._trials[step.draft].see(self._now, hopeful=hopeful)
        if self.wants_shadow:
            self._see_shadow(step, costs)

    def _costs_of(self, batch: int) -> BatchCosts:
        """What is known of a batch size; guesses for a new one come from the nearest that is known."""
        if batch not in self._costs:
            known = [size for size, costs in self._costs.items() if costs.known]
            nearest = min(known, key=lambda size: abs(size - batch), default=None)
            drafts = range(len(self._trials))
            guesses = [_GUESS if nearest is None else self._costs[nearest].line(draft) for draft in drafts]
            self._costs[batch] = BatchCosts(guesses)
        return self._costs[batch]

    def _choose_best(self, costs: BatchCosts) -> None:
        speedups = [self._speedup(draft, known.acceptance_rate, costs) for draft, known in enumerate(self._acceptance)]
        self._best_speedup = max(1.0, *speedups)
        best = speedups.index(self._best_speedup) if self._best_speedup > 1 else None
        if best is not None:
            self._trials[best].reset(self._now)
        elif self._best is not None:
            self._shadow_trial.reset(self._now)
        self._best = best

    def _speedup(self, draft: int, acceptance: float, costs: BatchCosts) -> float:
        """Of a draft's best rounds over plain steps: r(n) with costs in plain steps."""
        base, each = costs.line(draft)
        best, tokens, reached = 0.0, 1.0, 1.0
        for drafted in range(1, self._longest + 1):
            reached *= acceptance
            tokens += reached
            speedup = tokens / (base + each * drafted)
            if speedup <= best:
                break
            best = speedup
        return best

    def _most(self, draft: int, costs: BatchCosts) -> int:
        """The most tokens to draft, such that a round in vain is within the allowance."""
        base, each = costs.line(draft)
        return min(self._longest, int((self._allowance + 1 - base) / each))

    def _to_try(self, costs: BatchCosts) -> int | None:
        """The draft whose trial is due, if any."""
        due = {}
        for draft, trial in enumerate(self._trials):
            # The shadow tells how often a draft's likeliest token is the target's, not how often samples are taken.
            longer = _LONGEST_WAIT if draft in self._shadowed and costs.rounds[draft].known else 0
            if draft != self._best and trial.due + longer <= self._now and self._most(draft, costs) > 0:
                due[draft] = trial.due + longer
        return min(due, key=due.__getitem__, default=None)

    def _affords_shadow(self, costs: BatchCosts) -> bool:
        others = self._shadowed - {self._best}
        return (
            bool(others) and self._shadow_trial.due <= self._now and self._shadow_cost(others, costs) < self._allowance
        )

    def _shadow_cost(self, drafts: frozenset[int | None], costs: BatchCosts) -> float:
        """At most, in plain steps: a drafted token needs the draft's head, too."""
        return sum(costs.line(draft)[1] for draft in drafts if draft is not None)

    def _see_tokens(self, draft: int, step: Round) -> None:
        """Count each sequence's tokens up to the first that was refused."""
        seen = [min(count + 1, step.drafted) for count in step.accepted]
        self._acceptance[draft].see(sum(step.accepted), sum(seen))
        for count, judged, own in zip(step.accepted, seen, step.confidences or repeat(()), strict=False):
            for position, confidence in enumerate(own[:judged]):
                self._acceptance[draft].see_confidence(confidence, position < count)

    def _settle(self, step: Round, costs: BatchCosts) -> None:
        """Put what a step gained or lost to the allowance."""
        base, each = (1.0, 0.0) if step.draft is None else costs.line(step.draft)
        took = base + each * step.drafted
        gained = 1 + sum(step.accepted) / len(step.accepted) - took
        self._allowance = min(_LARGEST_ALLOWANCE, self._allowance + _SHARE * took + gained)

    def _see_shadow(self, step: Round, costs: BatchCosts) -> None:
        self._shadowed = frozenset(draft for draft, (_, seen) in enumerate(step.shadow) if seen)
        others = self._shadowed - {step.draft}
        hopeful = False
        for draft in others:
            right, seen = step.shadow[draft]
            self._acceptance[draft].see(right, seen)
            hopeful |= self._speedup(draft, right / seen, costs) > self._best_speedup
        self._allowance -= self._shadow_cost(others, costs)
        self._shadow_trial.see(self._now, hopeful=hopeful)
