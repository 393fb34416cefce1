"""Which rank holds which part of which layer, under a plan.

A group in form lp is one wide layer (its members' heads and FFN columns beside each other), and a single layer is a
wide layer of one member. Wide layers are cut evenly: rank r of n holds the r-th n-th of the heads and columns. With as
many ranks as members, that is one whole source layer. A group in form par is cut between its layers only, since each
layer's FFN reads its own attention's whole output.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from truedepth.errors import PlanError
from truedepth.plan import DepthPlan, Stage

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

MOST_RANKS = 64
"""Numbers of ranks that are tried for a message."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The share of a layer's heads and FFN columns from `start` to `stop`, as parts of the whole: 0 to 1."""

    start: Fraction
    stop: Fraction

    def cut(self, size: int) -> tuple[int, int]:
        """Of `size` equal things, those in the piece: first and end."""
        return int(size * self.start), int(size * self.stop)


def pieces_of(plan: DepthPlan, rank: int, ranks: int) -> dict[int, Piece]:
    """What a rank holds, by layer number; a layer that is not there it holds nothing of.

    Layers that the plan skips are held by nobody, unless the prompt runs them; they are then cut as single layers are.
    """
    skipped = plan.layers_skipped if plan.prefill == "full" else ()
    held: dict[int, Piece] = {}
    for stage in [*plan.stages, *(Stage((layer,)) for layer in skipped)]:
        members = stage.layers_run  # beside each other in the wide layer that the stage is
        for at, layer in enumerate(members):
            start = max(Fraction(rank * len(members), ranks) - at, Fraction(0))
            stop = min(Fraction((rank + 1) * len(members), ranks) - at, Fraction(1))
            if start < stop:
                # Merged layers are cut alike, one as the other: their mean is that of the pieces.
                held |= {own: Piece(start, stop) for own in (stage.layers if stage.merged else (layer,))}
    return held


def require_divisible(plan: DepthPlan, config: PreTrainedConfig, ranks: int) -> None:
    """Refuse a number of ranks that a plan on a model cannot be cut for.

    Raises:
        PlanError: with the stage, what in it does not divide, and the numbers of ranks that work.
    """
    problem = _problem(plan, config, ranks)
    if problem is not None:
        able = [str(n) for n in range(1, MOST_RANKS + 1) if _problem(plan, config, n) is None]
        raise PlanError(f"{problem}; numbers of ranks that can run this plan on this model: {', '.join(able)}")


def _problem(plan: DepthPlan, config: PreTrainedConfig, ranks: int) -> str | None:
    """Why a plan cannot be cut for so many ranks; None where it can."""
    full = DepthPlan.full(plan.num_layers).stages if plan.prefill == "full" else ()
    for stage in (*plan.groups, *plan.stages, *full):
        members = len(stage.layers_run)
        if members > 1 and plan.form == "par":
            if members % ranks:
                return (
                    f"the group '{stage}' runs {members} whole layers side by side (form par), "
                    f"which cannot be shared evenly by {ranks} ranks"
                )
            continue
        counts = {
            "attention heads": config.num_attention_heads,
            "key-value heads": config.num_key_value_heads,
            "FFN columns": config.intermediate_size,
        }
        for what, count in counts.items():
            if members * count % ranks:
                return f"the {members * count} {what} of stage '{stage}' cannot be shared evenly by {ranks} ranks"
    return None
