"""A model that exists only on paper: its loss is a sum that a person can work out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from truedepth.plan import DepthPlan


@dataclass
class PaperEvidence:
    """The loss is 2 nats, plus `costs[l]` for each missing layer l, plus `together[i, j]` where i and j miss.

    `asked` records the plans that a method asked for, request by request.
    """

    costs: Sequence[float]
    together: Mapping[tuple[int, int], float] = field(default_factory=dict)
    influence: Sequence[float] = ()
    distances: Mapping[int, Sequence[float]] = field(default_factory=dict)
    asked: list[list[DepthPlan]] = field(default_factory=list)

    @property
    def num_layers(self) -> int:
        return len(self.costs)

    def block_influence(self) -> Sequence[float]:
        return self.influence

    def angular_distance(self, block: int) -> Sequence[float]:
        return self.distances[block]

    def loss(self, plan: DepthPlan) -> float:
        return self.losses([plan])[0]

    def losses(self, plans: Sequence[DepthPlan]) -> list[float]:
        self.asked.append(list(plans))
        return [2.0 + self._extra(set(plan.layers_skipped)) for plan in plans]

    def _extra(self, missing: set[int]) -> float:
        pairs = sum(extra for pair, extra in self.together.items() if missing.issuperset(pair))
        return sum(self.costs[layer] for layer in missing) + pairs


@pytest.fixture(scope="session")
def paper_evidence() -> type[PaperEvidence]:
    """The class `PaperEvidence`, to be made with the numbers of the test."""
    return PaperEvidence
