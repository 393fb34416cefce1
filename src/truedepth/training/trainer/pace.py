"""How a training stands, and how fast it is lately."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

_STEPS = 20
"""Over how many steps the pace is measured."""


@dataclass(frozen=True)
class Snapshot:
    """How a training stands.

    Attributes:
        step, total_steps: optimizer steps made, and to be made in all.
        tokens_per_second: lately, over all ranks; 0 before the first step.
        seconds_left: at the present pace.
        figures: the newest value of each figure that was logged.
    """

    step: int
    total_steps: int
    tokens_per_second: float
    seconds_left: float
    figures: Mapping[str, float]


class Pace:
    """Counts tokens, and takes the time of steps."""

    def __init__(self) -> None:
        self._started = self._ended = self._began = time.monotonic()
        self._tokens = 0
        self._steps: deque[_TimedStep] = deque(maxlen=_STEPS)

    def begin_step(self) -> None:
        """A step begins."""
        self._began = time.monotonic()

    def add(self, tokens: int) -> None:
        """Tokens of one micro-batch of the present step."""
        self._tokens += tokens

    def end_step(self) -> None:
        """The present step is over."""
        now = time.monotonic()
        self._steps.append(_TimedStep(now - self._began, now - self._ended, self._tokens))
        self._ended, self._tokens = now, 0

    @property
    def seconds(self) -> float:
        """Since the pace has been taken."""
        return time.monotonic() - self._started

    @property
    def seconds_per_step(self) -> float:
        """With what comes between steps: saving, and judging held-out text; 0 before the first step."""
        return sum(step.since_last for step in self._steps) / len(self._steps) if self._steps else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Of this process, in steps only; 0 before the first step."""
        seconds = sum(step.seconds for step in self._steps)
        return sum(step.tokens for step in self._steps) / seconds if seconds else 0.0


@dataclass(frozen=True, slots=True)
class _TimedStep:
    """How long a step took, how long it is since the one before ended, and how many tokens it read."""

    seconds: float
    since_last: float
    tokens: int
