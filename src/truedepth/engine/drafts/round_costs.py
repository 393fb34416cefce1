"""What rounds of drafting and plain steps take, by what was seen of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median

from truedepth.engine.drafts.policy import Round

_WINDOW = 24
"""Timings that a cost is told from."""

_PLAIN_FIRST = 4
"""Plain steps before anything is drafted with a batch size. The median forgives that the first is slow."""


class RoundCost:
    """Seconds of a round by the tokens drafted: base + each * tokens, the line through the last rounds.

    The line starts from a guess, and is drawn to the plain step, which a round without drafted tokens is where the
    draft shares its layers with the target: that gives `each` from rounds of one length. Rounds more than a tenth
    off the line count less (Huber's weights), because then the machine did something else besides.

    Args:
        guess: base and each, in plain steps.
    """

    def __init__(self, guess: tuple[float, float]) -> None:
        self._guess = guess
        self._rounds: deque[tuple[int, float]] = deque(maxlen=_WINDOW)
        self._line = (0.0, 0.0)

    @property
    def known(self) -> bool:
        """Whether a round was timed."""
        return bool(self._rounds)

    def line(self, plain: float) -> tuple[float, float]:
        """Base and each, in seconds; `plain`: seconds of a plain step."""
        return self._line if self._rounds else (self._guess[0] * plain, self._guess[1] * plain)

    def see(self, tokens: int, seconds: float, plain: float) -> None:
        """Learn from a round."""
        if not self._rounds:
            self._rounds.extend([(1, sum(self._guess) * plain)] * 2)
        self._rounds.append((tokens, seconds))
        base, each = plain, median((took - plain) / count for count, took in self._rounds)
        for _ in range(3):
            weights = [
                min(1.0, 0.1 * (base + each * count) / max(abs(took - base - each * count), 1e-9 * plain))
                for count, took in self._rounds
            ]
            base, each = _line_through([(0, plain), *self._rounds], [1.0, *weights])
            base, each = max(base, 0.5 * plain), max(each, 0.01 * plain)
        self._line = base, each


def _line_through(points: Sequence[tuple[int, float]], weights: Sequence[float]) -> tuple[float, float]:
    """Value at 0 and slope, by weighted least squares."""
    weighted = list(zip(weights, points, strict=True))
    total = sum(weights)
    mean_x = sum(weight * x for weight, (x, _) in weighted) / total
    mean_y = sum(weight * y for weight, (_, y) in weighted) / total
    variance = sum(weight * (x - mean_x) ** 2 for weight, (x, _) in weighted)
    slope = sum(weight * (x - mean_x) * (y - mean_y) for weight, (x, y) in weighted) / variance
    return mean_y - slope * mean_x, slope


class BatchCosts:
    """What the steps of one batch size take.

    Attributes:
        plain: seconds of a plain step.
        rounds: by draft.
        since_plain: rounds since the last plain step.

    Args:
        guesses: see `RoundCost`, by draft.
    """

    def __init__(self, guesses: Sequence[tuple[float, float]]) -> None:
        self.plain = 0.0
        self.rounds = [RoundCost(guess) for guess in guesses]
        self.since_plain = 0
        self._plain_steps: deque[float] = deque(maxlen=_WINDOW)

    @property
    def known(self) -> bool:
        return len(self._plain_steps) >= _PLAIN_FIRST

    def line(self, draft: int) -> tuple[float, float]:
        """Of a draft's rounds: base and each, in plain steps."""
        base, each = self.rounds[draft].line(self.plain)
        return base / self.plain, each / self.plain

    def see(self, step: Round) -> None:
        seconds = step.draft_seconds + step.verify_seconds
        if step.draft is None:
            self._plain_steps.append(seconds)
            self.plain = median(self._plain_steps)
            self.since_plain = 0
        else:
            self.rounds[step.draft].see(step.drafted, seconds, self.plain)
            self.since_plain += 1
