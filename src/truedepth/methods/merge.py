"""Merge: groups of layers are replaced by one layer with the mean of their weights."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from truedepth.methods.ranges import RangeMethod, even_chunks
from truedepth.plan import Stage


class Merge(RangeMethod):
    """Merging, an intervention of the LP study, arXiv 2502.02790.

    Each group of g consecutive layers in start, ..., end - 1 becomes one layer whose weights are the mean

        theta = 1/g sum_i theta_i

    Effective depth: L - (end - start) (g - 1) / g. Without `group_size` the whole range becomes one layer.

    Limits: changes weights, so the prompt cannot run the original layers, and only layers of the same shape
    merge.
    """

    name: ClassVar[str] = "merge"
    summary: ClassVar[str] = "replace groups of layers in a range by one layer of averaged weights (study)"
    source: ClassVar[str] = "arXiv 2502.02790"

    group_size: int | None = Field(
        default=None, ge=2, description="g: how many layers become one; default the whole range"
    )

    def replacement(self, layers: range) -> tuple[Stage, ...]:
        return tuple(Stage(group, merged=True) for group in even_chunks(self.name, layers, self.group_size))
