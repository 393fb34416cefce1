"""How fast a training is: tokens a second and seconds a step, lately."""

from __future__ import annotations

import time
from collections import deque

_STEPS = 20
"""Over how many steps the pace is measured."""


class Pace:
    """Counts tokens, and takes the time between the ends of steps."""

    def __init__(self) -> None:
        self._started = self._step_began = time.monotonic()
        self._tokens = 0
        self._steps: deque[tuple[float, int]] = deque(maxlen=_STEPS)  # seconds and tokens of the last steps

    def add(self, tokens: int) -> None:
        """Tokens of one micro-batch of the present step."""
        self._tokens += tokens

    def end_step(self) -> None:
        """The present step is over."""
        now = time.monotonic()
        self._steps.append((now - self._step_began, self._tokens))
        self._step_began, self._tokens = now, 0

    @property
    def seconds(self) -> float:
        """Since the pace has been taken."""
        return time.monotonic() - self._started

    @property
    def seconds_per_step(self) -> float:
        """What stands between steps (saving, held-out text) included; 0 before the first step."""
        return sum(seconds for seconds, _ in self._steps) / len(self._steps) if self._steps else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Of this process; 0 before the first step."""
        seconds = sum(seconds for seconds, _ in self._steps)
        return sum(tokens for _, tokens in self._steps) / seconds if seconds else 0.0
