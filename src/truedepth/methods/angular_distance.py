"""Angular distance: the contiguous block that turns the hidden state least is removed."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from truedepth.methods.base import Evidence, EvidenceMethod
from truedepth.methods.selection import count_removed, least, without
from truedepth.plan import DepthPlan


class AngularDistance(EvidenceMethod):
    """Gromov et al., "The unreasonable ineffectiveness of the deeper layers", arXiv 2403.17887.

    With n = L - depth, the angular distance between the input of layer l and the input n layers later is

        d(x_l, x_{l+n}) = E[ arccos( x_l . x_{l+n} / (|x_l| |x_{l+n}|) ) ] / pi

    The block l, ..., l + n - 1 of least distance is removed; of equal blocks the deepest.

    Limits: the paper measures the distance at the last token of each sequence and heals the model by
    fine-tuning (QLoRA) afterwards; here it is the mean over all tokens, which needs less text. The removed
    layers are always neighbours. One forward pass.
    """

    name: ClassVar[str] = "angular-distance"
    summary: ClassVar[str] = "remove the contiguous block of layers that turns the hidden state least"
    source: ClassVar[str] = "arXiv 2403.17887"

    depth: int = Field(ge=1, description="how many layers remain; the block has n = L - depth layers")

    def plan(self, evidence: Evidence) -> DepthPlan:
        block = count_removed(self.name, "depth", self.depth, evidence.num_layers)
        if block == 0:
            return DepthPlan.full(evidence.num_layers)
        (start,) = least(evidence.angular_distance(block), 1, "angular distance")
        return without(range(start, start + block), evidence.num_layers)
