"""Early exit: the first layers run, the rest are left out."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from truedepth.methods.base import LayerMethod
from truedepth.methods.selection import count_removed
from truedepth.plan import DepthPlan


class EarlyExit(LayerMethod):
    """Static early exit, as in LayerSkip, arXiv 2404.16710.

    The hidden state after the first E layers goes straight to the final norm and the LM head:

        logits = head(norm(x_E))

    Limits: models that were not trained for it lose nearly everything, since only the last layer writes for
    the head; LayerSkip trains with layer dropout and a loss at every exit. It is the cheapest draft for
    speculative decoding: the layers after E can verify from the same hidden states and cache.
    """

    name: ClassVar[str] = "early-exit"
    summary: ClassVar[str] = "run the first layers only"
    source: ClassVar[str] = "arXiv 2404.16710"
    shorthand: ClassVar[str | None] = "exit"

    exit: int = Field(ge=1, description="E: how many of the first layers are kept")

    def plan(self, num_layers: int) -> DepthPlan:
        count_removed(self.name, "exit", self.exit, num_layers)
        return DepthPlan.of_layers(range(self.exit), num_layers)
