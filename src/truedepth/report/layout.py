"""How a drawing lays out a plan: its stages in order, and between them the layers it skips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from truedepth.plan import DepthPlan, Stage

Role = Literal["alone", "parallel", "merged", "skipped"]
"""What a plan does with a layer: runs it alone, side by side with others, merged into one, or not at all."""

ROLE_LABELS: dict[Role, str] = {
    "alone": "runs alone",
    "parallel": "side by side",
    "merged": "merged into one",
    "skipped": "skipped",
}


@dataclass(frozen=True, slots=True)
class Slot:
    """One piece of the drawing: a stage, or a single skipped layer."""

    role: Role
    layers: tuple[int, ...]


def slots(plan: DepthPlan) -> tuple[Slot, ...]:
    """The plan's stages in the order in which they run, and between them the skipped layers.

    A skipped layer stands behind the stage that runs the nearest lower layer, or at the start where there is
    none; so a plan that keeps the order of the layers shows all of them in order.
    """
    behind: dict[int, list[Slot]] = {}
    last_used = -1
    used = set(plan.layers_used)
    for layer in range(plan.num_layers):
        if layer in used:
            last_used = layer
        else:
            behind.setdefault(last_used, []).append(Slot("skipped", (layer,)))
    found = behind.pop(-1, [])
    for stage in plan.stages:
        found.append(Slot(_role(stage), stage.layers))
        for layer in sorted(stage.layers):
            found.extend(behind.pop(layer, []))
    return tuple(found)


def roles(plan: DepthPlan) -> tuple[Role, ...]:
    """What the plan does with each layer, by layer number."""
    of_layer: dict[int, Role] = {layer: _role(stage) for stage in plan.stages for layer in stage.layers}
    return tuple(of_layer.get(layer, "skipped") for layer in range(plan.num_layers))


def _role(stage: Stage) -> Role:
    if stage.merged:
        return "merged"
    return "parallel" if stage.is_group else "alone"
