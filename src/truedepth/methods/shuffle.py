"""Shuffle: the layers of a range run in random order."""

from __future__ import annotations

import random
from typing import ClassVar

from pydantic import Field

from truedepth.methods.ranges import RangeMethod
from truedepth.plan import Stage


class Shuffle(RangeMethod):
    """Shuffling, an intervention of the LP study, arXiv 2502.02790.

    The layers start, ..., end - 1 run one after the other in a random order; effective depth stays L.

    Limits: saves nothing. It asks how much the order of layers matters: where shuffling does little harm,
    running the layers side by side can be tried.
    """

    name: ClassVar[str] = "shuffle"
    summary: ClassVar[str] = "run the layers of a range in random order (study)"
    source: ClassVar[str] = "arXiv 2502.02790"

    seed: int = Field(default=0, ge=0, description="seed of the random order")

    def replacement(self, layers: range) -> tuple[Stage, ...]:
        order = random.Random(self.seed).sample(layers, len(layers))
        return tuple(Stage((layer,)) for layer in order)
