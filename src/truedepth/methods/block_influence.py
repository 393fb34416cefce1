"""Block influence: the layers that turn the hidden state least are removed."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from truedepth.methods.base import Evidence, EvidenceMethod
from truedepth.methods.selection import count_removed, least, without
from truedepth.plan import DepthPlan


class BlockInfluence(EvidenceMethod):
    """ShortGPT, arXiv 2403.03853.

    The block influence of layer l is one minus the mean cosine between its input and its output, over tokens:

        BI_l = 1 - E[ x_l . x_{l+1} / (|x_l| |x_{l+1}|) ]

    The L - depth layers of least BI are removed at once. Of equal layers the deeper goes first.

    Limits: each layer is judged in the unmodified model, as if it went alone, so layers that stand in for
    each other can go together. One forward pass.
    """

    name: ClassVar[str] = "block-influence"
    summary: ClassVar[str] = "remove the layers that change the direction of the hidden state least (ShortGPT)"
    source: ClassVar[str] = "arXiv 2403.03853"

    depth: int = Field(ge=1, description="how many layers remain")

    def plan(self, evidence: Evidence) -> DepthPlan:
        count = count_removed(self.name, "depth", self.depth, evidence.num_layers)
        removed = least(evidence.block_influence(), count, "block influence") if count else ()
        return without(removed, evidence.num_layers)
