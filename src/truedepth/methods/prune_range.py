"""Prune range: the layers of a range are removed."""

from __future__ import annotations

from typing import ClassVar

from truedepth.errors import MethodError
from truedepth.methods.ranges import RangeMethod
from truedepth.plan import DepthPlan, Stage


class PruneRange(RangeMethod):
    """Pruning, an intervention of the LP study, arXiv 2502.02790.

    The layers start, ..., end - 1 are removed: x_end := x_start. Effective depth: L - (end - start).

    Limits: the range is the user's choice; `angular-distance` chooses one by measuring.
    """

    name: ClassVar[str] = "prune-range"
    summary: ClassVar[str] = "remove the layers of a range (study)"
    source: ClassVar[str] = "arXiv 2502.02790"

    def plan(self, num_layers: int) -> DepthPlan:
        if self.start == 0 and self.end == num_layers:
            raise MethodError(
                f"method '{self.name}': start 0 and end {self.end} remove all {num_layers} layers; leave at least one"
            )
        return super().plan(num_layers)

    def replacement(self, layers: range) -> tuple[Stage, ...]:
        return ()
