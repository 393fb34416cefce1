"""Parallel range: the layers of a range run side by side."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from truedepth.methods.ranges import RangeMethod, even_chunks
from truedepth.plan import DepthPlan, Form, Stage


class ParallelRange(RangeMethod):
    """Running a range in parallel, an intervention of the LP study, arXiv 2502.02790.

    Each group of g consecutive layers in start, ..., end - 1 runs on one input x:

        form lp:   u = x + sum_i A_i(x);   y = u + sum_i F_i(u)
        form par:  y = x + sum_i [A_i(x) + F_i(x + A_i(x))]

    Effective depth: L - (end - start) (g - 1) / g. Without `group_size` the whole range is one group; with
    group_size 2 it is the study's pairs, from which `layer-parallel` was made.

    Limits: the wider the groups, the shorter the range that keeps its quality. See
    `layer-parallel` for where time is saved.
    """

    name: ClassVar[str] = "parallel-range"
    summary: ClassVar[str] = "run the layers of a range side by side, as one group or several (study)"
    source: ClassVar[str] = "arXiv 2502.02790"

    group_size: int | None = Field(default=None, ge=2, description="g: layers in a group; default the whole range")
    form: Form = Field(
        default="lp",
        description="how a group runs: 'lp' sums attention outputs, then FFN outputs, as in the paper; 'par' "
        "sums whole layers",
    )

    def plan(self, num_layers: int) -> DepthPlan:
        return super().plan(num_layers).with_form(self.form)

    def replacement(self, layers: range) -> tuple[Stage, ...]:
        return tuple(Stage(group) for group in even_chunks(self.name, layers, self.group_size))
