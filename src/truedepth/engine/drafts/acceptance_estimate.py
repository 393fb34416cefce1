"""How likely a draft's tokens are accepted, by what was seen of them."""

from __future__ import annotations

from bisect import bisect
from math import exp, log

_PRIOR = (2.0, 4.0)
"""Tokens taken and seen before any was."""

_MEMORIES = (8.0, 64.0)
"""Tokens that an estimate of acceptance remembers, about."""

_CHANGE = 0.02
"""Chance at each token that another memory than before describes acceptance best."""

_BIN_EDGES = (0.3, 0.5, 0.65, 0.77, 0.86, 0.92, 0.96, 0.985)
"""Between the bins of confidence: from one to the next the chance of an error falls by about a third."""

_BIN_MEMORY, _BIN_PRIOR = 48.0, 8.0
"""Tokens that a bin remembers, about, and how many make it count as much as the acceptance rate over all bins."""


class AcceptanceEstimate:
    """How likely a draft's tokens are taken.

    `acceptance_rate` is for a token that the draft has not made yet, if those before it are taken. It is the mean of
    estimates that forget quickly and slowly, (taken + 1/2) / (seen + 1) each, weighted by how well they foretold what
    was seen ("fixed share", Herbster and Warmuth, Tracking the best expert, 1998): steady while nothing changes, and
    quick when something does. `of` is for a token whose confidence is known, from tokens with alike ones.
    """

    def __init__(self) -> None:
        self._counts = [_PRIOR] * len(_MEMORIES)
        self._weights = [1 / len(_MEMORIES)] * len(_MEMORIES)
        self._bins = [(0.0, 0.0)] * (len(_BIN_EDGES) + 1)
        self.acceptance_rate = _PRIOR[0] / _PRIOR[1]

    def of(self, confidence: float) -> float:
        """The chance that a token of this confidence is taken, if those before it are."""
        taken, seen = self._bins[bisect(_BIN_EDGES, confidence)]
        return (taken + _BIN_PRIOR * self.acceptance_rate) / (seen + _BIN_PRIOR)

    def see(self, taken: int, seen: int) -> None:
        """Learn from the tokens of a round; only those count before which all drafted ones were taken."""
        rates = [_estimate(counts) for counts in self._counts]
        logs = [taken * log(rate) + (seen - taken) * log(1 - rate) for rate in rates]
        fits = [weight * exp(each - max(logs)) for weight, each in zip(self._weights, logs, strict=True)]
        self._weights = [(1 - _CHANGE) * fit / sum(fits) + _CHANGE / len(fits) for fit in fits]
        self._counts = [
            _added(counts, memory, taken, seen) for counts, memory in zip(self._counts, _MEMORIES, strict=True)
        ]
        self.acceptance_rate = sum(
            weight * _estimate(counts) for weight, counts in zip(self._weights, self._counts, strict=True)
        )

    def see_confidence(self, confidence: float, taken: bool) -> None:
        """Learn what the confidence of one of these tokens meant."""
        index = bisect(_BIN_EDGES, confidence)
        self._bins[index] = _added(self._bins[index], _BIN_MEMORY, taken, 1)


def _estimate(counts: tuple[float, float]) -> float:
    return (counts[0] + 0.5) / (counts[1] + 1)


def _added(counts: tuple[float, float], memory: float, taken: int, seen: int) -> tuple[float, float]:
    """Counts with some more, and what they had before partly forgotten."""
    kept = (1 - 1 / memory) ** seen
    return kept * counts[0] + taken, kept * counts[1] + seen
