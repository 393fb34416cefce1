"""Layer parallelism: consecutive layers run side by side in groups."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from truedepth.errors import MethodError
from truedepth.methods.base import LayerMethod
from truedepth.methods.hints import nearest
from truedepth.methods.ranges import chunks, surround
from truedepth.plan import DepthPlan, Form, Stage


class LayerParallel(LayerMethod):
    """Layer parallelism (LP), "Leveraging the true depth of LLMs", arXiv 2502.02790.

    The Delta layers end - Delta, ..., end - 1 are grouped g by g, and each group runs on one input x:

        form lp:   u = x + sum_i A_i(x);   y = u + sum_i F_i(u)
        form par:  y = x + sum_i [A_i(x) + F_i(x + A_i(x))]

    with A = norm + attention and F = norm + FFN. Effective depth: L - Delta (g - 1) / g. The paper has g = 2
    and form lp; wider groups and form par go beyond it.

    Published ends: 28 for Llama 2 7B (L = 32) and 25 for Llama 3.2 3B (L = 28). Both are L - floor(L / 8),
    which is therefore the default; where Delta is larger than that, the default is Delta, so that every depth
    that groups can reach has a plan.

    Limits: a group reads as many bytes as its layers do, so time is saved only where layers run at the same
    time (devices side by side, idle compute units) or where all-reduces cost time. The KV cache keeps its
    size. Published as usable without training: L = 32 down to depth 25, L = 28 down to 23.
    """

    name: ClassVar[str] = "layer-parallel"
    summary: ClassVar[str] = "run consecutive layers side by side, in pairs or wider groups"
    source: ClassVar[str] = "arXiv 2502.02790"
    either: ClassVar[tuple[str, ...]] = ("delta", "depth")
    shorthand: ClassVar[str | None] = "depth"

    end: int | None = Field(
        default=None,
        ge=1,
        description="the index after the last grouped layer; default L - floor(L/8), or delta where larger",
    )
    delta: int | None = Field(
        default=None, ge=0, description="Delta: how many layers are grouped; a multiple of group_size"
    )
    depth: int | None = Field(default=None, ge=1, description="effective depth to reach, instead of delta")
    group_size: int = Field(default=2, ge=2, description="g: layers in a group; the paper has pairs")
    form: Form = Field(
        default="lp",
        description="how a group runs: 'lp' sums attention outputs, then FFN outputs, as in the paper; 'par' "
        "sums whole layers",
    )

    def plan(self, num_layers: int) -> DepthPlan:
        limit = num_layers if self.end is None else self.end
        if limit > num_layers:
            raise MethodError(
                f"method '{self.name}': end is {limit}, but the model has {num_layers} layers; "
                f"choose at most {num_layers}"
            )
        delta = self._delta_up_to(limit, num_layers)
        end = max(num_layers - num_layers // 8, delta) if self.end is None else self.end
        groups = tuple(Stage(group) for group in chunks(range(end - delta, end), self.group_size))
        return surround(groups, end - delta, end, num_layers, self.form)

    def _delta_up_to(self, limit: int, num_layers: int) -> int:
        """How many of the first `limit` layers are grouped: `delta`, or as many as `depth` needs."""
        size = self.group_size
        if self.delta is not None:
            allowed = range(0, limit + 1, size)
            if self.delta not in allowed:
                raise MethodError(
                    f"method '{self.name}': delta is {self.delta}, but it must be a multiple of group_size "
                    f"{size} and at most {limit}; nearest: {nearest(self.delta, allowed)}"
                )
            return self.delta
        depths = range(num_layers, num_layers - limit // size * (size - 1) - 1, 1 - size)
        depth = self.depth or 0
        if depth not in depths:
            raise MethodError(
                f"method '{self.name}': groups of {size} among the first {limit} layers cannot take "
                f"{num_layers} layers to depth {depth}; nearest: {nearest(depth, depths)}"
            )
        return depths.index(depth) * size
