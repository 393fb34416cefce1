"""The moves of the search: each makes a plan shorter by one stage.

A layer is skipped, or two neighbouring stages go side by side, which pairs two layers or widens a group.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

from truedepth.plan import DepthPlan, Form, Stage

Move = Literal["skip", "lp", "par"]
"""Skip a layer, or put neighbouring stages side by side in one of the two forms."""

MOVES: tuple[Move, ...] = get_args(Move)


def neighbours(plan: DepthPlan, move: Move) -> Iterator[DepthPlan]:
    """All plans that one move makes of `plan`, each one stage shorter."""
    if plan.effective_depth < 2 or (move != "skip" and plan.groups and plan.form != move):
        return
    form: Form = plan.form if move == "skip" else move
    for at, stage in enumerate(plan.stages):
        before, after = plan.stages[:at], plan.stages[at + 1 :]
        if move == "skip" and len(stage.layers) == 1:
            yield DepthPlan(before + after, plan.num_layers, form)
        elif move != "skip" and after:
            group = Stage(stage.layers + after[0].layers)
            yield DepthPlan((*before, group, *after[1:]), plan.num_layers, form)


def undo(plan: DepthPlan) -> Iterator[DepthPlan]:
    """All plans that differ from `plan` by one change less: a layer put back, or one end of a group on its own."""
    for layer in plan.layers_skipped:
        at = sum(stage.layers[0] < layer for stage in plan.stages)
        yield DepthPlan((*plan.stages[:at], Stage((layer,)), *plan.stages[at:]), plan.num_layers, plan.form)
    for at, stage in enumerate(plan.stages):
        if not stage.is_group:
            continue
        for cut in {1, len(stage.layers) - 1}:
            halves = (Stage(stage.layers[:cut]), Stage(stage.layers[cut:]))
            yield DepthPlan((*plan.stages[:at], *halves, *plan.stages[at + 1 :]), plan.num_layers, plan.form)


def shallowest(num_layers: int, move: Move) -> DepthPlan:
    """What the move makes of a model that it is repeated on."""
    if move == "skip":
        return DepthPlan.of_layers([0], num_layers)
    return DepthPlan((Stage(tuple(range(num_layers))),), num_layers, move)
