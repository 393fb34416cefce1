"""What the study's interventions share (arXiv 2502.02790, the part on the effective depth of a model).

The study makes one change to the layers start, ..., end - 1, leaves the others as they are, and looks at the
perplexity for every start and end.
"""

from __future__ import annotations

from abc import abstractmethod

from pydantic import Field

from truedepth.errors import MethodError
from truedepth.methods.base import LayerMethod
from truedepth.methods.hints import nearest
from truedepth.plan import DepthPlan, Form, Stage


class RangeMethod(LayerMethod):
    """Replaces the layers start, ..., end - 1 by other stages; the layers around them run as they are."""

    start: int = Field(ge=0, description="s: the first layer of the range, counted from 0")
    end: int = Field(ge=1, description="e: the index after the last layer of the range")

    @abstractmethod
    def replacement(self, layers: range) -> tuple[Stage, ...]:
        """The stages that run in place of `layers`.

        Raises:
            MethodError: the parameters do not fit the range.
        """

    def plan(self, num_layers: int) -> DepthPlan:
        if not self.start < self.end <= num_layers:
            raise MethodError(
                f"method '{self.name}': start {self.start} and end {self.end} are not a range of a "
                f"model with {num_layers} layers; choose 0 <= start < end <= {num_layers}"
            )
        stages = self.replacement(range(self.start, self.end))
        return surround(stages, self.start, self.end, num_layers)


def surround(stages: tuple[Stage, ...], start: int, end: int, num_layers: int, form: Form = "lp") -> DepthPlan:
    """The plan that runs `stages` in place of the layers start, ..., end - 1."""
    before, after = singles(range(start)), singles(range(end, num_layers))
    return DepthPlan((*before, *stages, *after), num_layers, form)


def singles(layers: range) -> tuple[Stage, ...]:
    """One stage a layer."""
    return tuple(Stage((layer,)) for layer in layers)


def chunks(layers: range, size: int) -> list[tuple[int, ...]]:
    """`layers` cut into consecutive tuples of `size`; the last may be shorter."""
    return [tuple(layers[at : at + size]) for at in range(0, len(layers), size)]


def even_chunks(method: str, layers: range, group_size: int | None) -> list[tuple[int, ...]]:
    """A range cut into groups of `group_size`, or kept as one group where that is None.

    Raises:
        MethodError: the range has a single layer, or cannot be cut evenly.
    """
    if len(layers) < 2:
        raise MethodError(f"method '{method}': the range has a single layer; it needs at least two")
    size = group_size or len(layers)
    if len(layers) % size:
        lengths = nearest(len(layers), range(size, len(layers) + size, size))
        raise MethodError(
            f"method '{method}': a range of {len(layers)} layers does not divide into groups of {size}; "
            f"choose start and end {lengths} layers apart, or another group_size"
        )
    return chunks(layers, size)
