"""The search for the plan that loses least, over all methods' moves, at the cost that stages have on the hardware.

The search first takes, again and again, the move that costs the least loss for the time that it saves. With skipping
as the only move, this walk is the greedy removal of SLEB (arXiv 2402.09025).

A walk fits its text too closely and cannot take a move back. A plan is therefore improved on other, longer text: a
change is undone, other ways to make up for the time are proposed by the first text and judged by the second, and the
best is kept where its loss is clearly lower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from truedepth.errors import SearchError, UsageError
from truedepth.measuring.costs import CostModel
from truedepth.methods.base import Evidence
from truedepth.plan import DepthPlan
from truedepth.search.moves import MOVES, Move, neighbours, shallowest, undo

_ROUNDS = 2
"""How often a plan is improved at the most."""

_RETRACED = 2
"""How many of the ways to undo a change are followed up each time: those of least loss."""

_PROPOSED = 5
"""How many of the ways on from there are judged."""

_MARGIN = 0.1
"""Nats a token by which a plan must be better to replace another. Smaller gains on a thousand tokens, about 0.05 nats,
were measured not to hold on other text."""


@dataclass(frozen=True)
class SearchStep:
    """A plan on the search's way.

    Attributes:
        loss: mean cross-entropy (nats a token) of the text that the search looked at.
        speedup: by the cost model.
        text: which text that was.
    """

    plan: DepthPlan
    loss: float
    speedup: float
    text: str


@dataclass(frozen=True)
class Target:
    """Where to stop: a `speedup` or a `depth` to reach, or a perplexity ratio not to exceed.

    The perplexity ratio is the plan's over the unmodified model's.

    Raises:
        UsageError: a value that no plan can meet, or that every plan meets.
    """

    kind: Literal["speedup", "max_perplexity_ratio", "depth"]
    value: float

    def __post_init__(self) -> None:
        name = self.kind.replace("_", " ")
        if not math.isfinite(self.value):
            raise UsageError(f"the target {name} is {self.value}; give a number")
        if self.kind == "depth" and (self.value < 1 or self.value != int(self.value)):
            raise UsageError(f"the target depth is {self.value:g}; give a whole number of stages, at least 1")
        if self.kind != "depth" and self.value <= 1:
            raise UsageError(f"the target {name} is {self.value:g}; give more than 1, which the unmodified model has")


@dataclass(frozen=True)
class Search:
    """A search with everything it looks at. Deterministic, given the losses and the costs.

    Attributes:
        evidence: judges plans on some text.
        costs: what a decode step takes.
        target: where to stop.
        moves: the moves that are allowed.
        on_step: called with each plan that is taken.
        text: what the evidence's text is called.
    """

    evidence: Evidence
    costs: CostModel
    target: Target
    moves: Sequence[Move] = MOVES
    on_step: Callable[[SearchStep], None] = lambda step: None
    text: str = "calibration"

    def walk(self) -> list[SearchStep]:
        """Take moves until the target.

        Returns:
            The plans taken, from the unmodified model on; the last one is the result.

        Raises:
            SearchError: the target cannot be reached; the message says what can.
        """
        self._refuse_unreachable()
        full = DepthPlan.full(self.evidence.num_layers)
        path = [SearchStep(full, self.evidence.losses([full])[0], 1.0, self.text)]
        self.on_step(path[0])
        while not self._reached(path[-1]) and self._neighbours(path[-1].plan):
            following = self._cheapest(path[-1])
            if self._exceeds(path[0], following):
                break
            path.append(following)
            self.on_step(following)
        return path

    def _reached(self, step: SearchStep) -> bool:
        if self.target.kind == "speedup":
            return step.speedup >= self.target.value
        return self.target.kind == "depth" and step.plan.effective_depth <= self.target.value

    def _exceeds(self, base: SearchStep, step: SearchStep) -> bool:
        limit = self.target.value if self.target.kind == "max_perplexity_ratio" else math.inf
        return step.loss > base.loss + math.log(limit)

    def _neighbours(self, plan: DepthPlan) -> list[DepthPlan]:
        """Plans one move away; those that save no time only where depth is what counts."""
        moves = [move for move in self.moves if self.target.kind == "depth" or self._saves(move)]
        return [neighbour for move in moves for neighbour in neighbours(plan, move)]

    def _saves(self, move: Move) -> bool:
        return move == "skip" or self.costs.worth(move)

    def _judge(self, plans: Sequence[DepthPlan]) -> list[SearchStep]:
        """Plans with their figures, but for those whose loss is not a number (half precision can overflow)."""
        losses = self.evidence.losses(plans)
        return [
            SearchStep(plan, loss, self.costs.speedup(plan), self.text)
            for plan, loss in zip(plans, losses, strict=True)
            if math.isfinite(loss)
        ]

    def _cheapest(self, current: SearchStep) -> SearchStep:
        """The move that costs least loss for the time that it saves, or least loss where depth is the target.

        Raises:
            SearchError: no move leaves a loss that is a number.
        """
        seconds = self.costs.decode_seconds(current.plan)

        def price(step: SearchStep) -> float:
            rise = step.loss - current.loss
            if self.target.kind == "depth" or rise <= 0:
                return rise
            return rise / (seconds - self.costs.decode_seconds(step.plan))

        following = self._judge(self._neighbours(current.plan))
        if not following:
            raise SearchError(
                f"no move leads on from the plan '{current.plan}': each leaves a loss that is not a number; "
                "load the model with --dtype float32"
            )
        return min(following, key=price)

    def improve(self, plan: DepthPlan, proposer: Evidence) -> list[SearchStep]:
        """Plans of lower and lower loss that still meet the target (or keep their speed where that is a ratio).

        Args:
            plan: where to begin; a plan that meets the target, with a finite loss.
            proposer: cheaper evidence, which says what is worth judging.

        Returns:
            The plans taken, beginning with `plan`; the last one is the result.
        """
        path = self._judge([plan])
        speedup = path[0].speedup if self.target.kind == "max_perplexity_ratio" else self.target.value

        def is_enough(plan: DepthPlan) -> bool:
            own = self.costs.speedup(plan)
            return self.target.kind == "depth" or own >= speedup or math.isclose(own, speedup)

        for _ in range(_ROUNDS):
            undone = sorted(self._judge(list(undo(path[-1].plan))), key=lambda step: step.loss)[:_RETRACED]
            ways = [list(filter(is_enough, self._neighbours(step.plan))) for step in undone]
            others = self._judge([other for plans in ways for other in _propose(plans, proposer)])
            best = min(others, key=lambda step: step.loss, default=path[-1])
            if best.loss > path[-1].loss - _MARGIN:
                break
            path.append(best)
            self.on_step(best)
        return path

    def _refuse_unreachable(self) -> None:
        layers = self.evidence.num_layers
        if self.target.kind == "depth" and self.target.value >= layers:
            raise SearchError(
                f"the target depth is {self.target.value:g}, but the model has {layers} layers; "
                f"choose 1 to {layers - 1}"
            )
        if self.target.kind == "depth":
            return
        saving = [move for move in self.moves if self._saves(move)]
        largest = max((self.costs.speedup(shallowest(layers, move)) for move in saving), default=1.0)
        wanted = self.target.value if self.target.kind == "speedup" else 1.0
        if not saving or wanted > largest:
            remedy = "choose a smaller speedup" if saving else "allow skipping layers, or plan for other --hardware"
            raise SearchError(
                f"a speedup of {wanted:g} cannot be reached with the moves {', '.join(self.moves)}: the largest is "
                f"{math.floor(largest * 100) / 100:.2f}. {self.costs.record().note} To go on, {remedy}, or give a "
                "target depth"
            )


def _propose(plans: Sequence[DepthPlan], proposer: Evidence) -> list[DepthPlan]:
    """The plans that lose least by the proposer's evidence."""
    losses = proposer.losses(plans)
    finite = [index for index, loss in enumerate(losses) if math.isfinite(loss)]
    return [plans[index] for index in sorted(finite, key=losses.__getitem__)[:_PROPOSED]]
