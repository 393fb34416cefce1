"""A truedepth method: a range of layers runs in reverse order."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from truedepth.errors import MethodError
from truedepth.methods import LayerMethod
from truedepth.plan import DepthPlan


class Reverse(LayerMethod):
    """Reversed middle layers, "Transformer Layers as Painters", arXiv 2407.09298.

    The layers end - 1, ..., start run in this order; the layers around them run as they are.

    Limits: saves nothing. It asks how much the order of the middle layers matters.
    """

    name: ClassVar[str] = "reverse"
    summary: ClassVar[str] = "run the layers of a range in reverse order"
    source: ClassVar[str] = "arXiv 2407.09298"

    start: int = Field(ge=0, description="the first layer of the range, counted from 0")
    end: int = Field(ge=1, description="the index after the last layer of the range")

    def plan(self, num_layers: int) -> DepthPlan:
        if not self.start < self.end <= num_layers:
            raise MethodError(
                f"method 'reverse': start {self.start} and end {self.end} are not a range of {num_layers} "
                f"layers; choose 0 <= start < end <= {num_layers}"
            )
        middle = reversed(range(self.start, self.end))
        order = (*range(self.start), *middle, *range(self.end, num_layers))
        return DepthPlan.of_layers(order, num_layers)
