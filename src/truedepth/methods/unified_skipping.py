"""Unified layer skipping: evenly spaced layers run while decoding."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field

from truedepth.errors import MethodError
from truedepth.methods.base import LayerMethod
from truedepth.methods.selection import count_removed
from truedepth.plan import DepthPlan


class UnifiedSkipping(LayerMethod):
    """Unified layer skipping (ULS), arXiv 2404.06954.

    For a target speedup r, n = floor(L / r) of the L layers run while decoding; the prompt runs all of them,
    and the caches of the skipped layers are never read again. Which n:

        published:  0, L - 1, and between them the first n - 2 indices divisible by floor(L / (n - 1))
        balanced:   round(i (L - 1) / (n - 1)) for i = 0, ..., n - 1, halves rounded up

    Both keep the first and the last layer. The published rule bunches the kept layers where L / (n - 1) is
    far from whole (L = 32, r = 1.5 keeps 0 to 19 and 31) and divides by zero for n = 1; the balanced rule
    spaces them evenly for every n.

    Limits: r is a ratio of layers. The embedding, the LM head and the prompt do not shrink, so the measured
    speedup is lower: published 1.66 to 1.76 for r = 2 and 3.31 to 3.94 for r = 5. The paper trains the model
    for this; without training quality falls fast.
    """

    name: ClassVar[str] = "unified-skipping"
    summary: ClassVar[str] = "run evenly spaced layers while decoding; the prompt runs all of them"
    source: ClassVar[str] = "arXiv 2404.06954"
    either: ClassVar[tuple[str, ...]] = ("speedup", "depth")
    shorthand: ClassVar[str | None] = "speedup"

    speedup: float | None = Field(
        default=None,
        gt=1,
        allow_inf_nan=False,
        description="r: target speedup; n = floor(L/r) layers are kept",
    )
    depth: int | None = Field(default=None, ge=1, description="n: how many layers are kept, instead of speedup")
    rule: Literal["balanced", "published"] = Field(
        default="balanced", description="which n layers are kept: 'balanced' spaces them evenly"
    )

    def plan(self, num_layers: int) -> DepthPlan:
        kept = self._kept(num_layers)
        if kept < 2 <= num_layers or kept < 1:
            largest = f", which a speedup of at most {num_layers / 2:g} leaves" if self.speedup else ""
            raise MethodError(
                f"method '{self.name}': {kept} of {num_layers} layers would be kept, but the first and "
                f"the last always are; keep at least 2{largest}"
            )
        rule = _published if self.rule == "published" else _balanced
        return DepthPlan.of_layers(rule(kept, num_layers), num_layers, prefill="full")

    def _kept(self, num_layers: int) -> int:
        if self.depth is not None:
            return num_layers - count_removed(self.name, "depth", self.depth, num_layers)
        # The small term undoes binary rounding: 33 / 1.1 is 29.999999999999996, and means 30.
        return math.floor(num_layers / (self.speedup or 1.0) + 1e-9)


def _published(kept: int, num_layers: int) -> list[int]:
    if kept == num_layers:
        return list(range(num_layers))
    step = num_layers // (kept - 1)
    return [0, *(step * i for i in range(1, kept - 1)), num_layers - 1]


def _balanced(kept: int, num_layers: int) -> list[int]:
    gaps = max(kept - 1, 1)
    return [(2 * i * (num_layers - 1) + gaps) // (2 * gaps) for i in range(kept)]
