"""Greedy removal: one layer after another goes, each time the one that is missed least."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from truedepth.methods.base import Evidence, EvidenceMethod
from truedepth.methods.selection import count_removed, least, without
from truedepth.plan import DepthPlan


class GreedyRemoval(EvidenceMethod):
    """SLEB, arXiv 2402.09025.

    Starting from all layers S, the layer without which the calibration loss is least is removed, until
    `depth` remain; of equal layers the deepest:

        S <- S \\ { argmin_{l in S} loss(S \\ {l}) }

    Limits: costs one loss for each remaining layer at each removal, (L - depth) (L + depth + 1) / 2 in all.
    Fitted to the calibration text. The authors' script spares the first and the last layer; here they go too
    if that is measured to be best.
    """

    name: ClassVar[str] = "greedy-removal"
    summary: ClassVar[str] = "remove, one at a time, the layer whose removal costs the least loss (SLEB)"
    source: ClassVar[str] = "arXiv 2402.09025"

    depth: int = Field(ge=1, description="how many layers remain")

    def plan(self, evidence: Evidence) -> DepthPlan:
        num_layers = evidence.num_layers
        count = count_removed(self.name, "depth", self.depth, num_layers)
        removed: set[int] = set()
        for _ in range(count):
            remaining = [layer for layer in range(num_layers) if layer not in removed]
            losses = evidence.losses([without(removed | {layer}, num_layers) for layer in remaining])
            (best,) = least(losses, 1, "calibration loss")
            removed.add(remaining[best])
        return without(removed, num_layers)
