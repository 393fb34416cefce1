"""What a plan changes in a model: which layers it gives other work, and weights that it replaces."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from truedepth.families import family_of
from truedepth.models.rewire import apply, restore
from truedepth.plan import DepthPlan, Stage


def changed_layers(plan: DepthPlan) -> tuple[int, ...]:
    """The layers that run otherwise than in the model as it came, ascending.

    They are the members of groups and merges, and layers whose neighbour before or after is another than it was: around
    a gap, or out of order. The embedding is the neighbour before layer 0, the final norm that after the last layer.
    """
    changed: set[int] = set()
    ends = [(-1, -1), *((min(stage.layers), max(stage.layers)) for stage in plan.stages), (plan.num_layers,) * 2]
    for stage, (_, before), (after, _) in zip(plan.stages, ends, ends[2:], strict=False):
        alone = len(stage.layers) == 1
        if not (alone and before == stage.layers[0] - 1 and after == stage.layers[0] + 1):
            changed.update(stage.layers)
    return tuple(sorted(changed))


def bake_merges(model: Any, plan: DepthPlan) -> tuple[DepthPlan, dict[str, Tensor]]:
    """Give the first layer of each merged stage the mean of the stage's weights for good.

    Trained weights of a merged layer can so be kept and saved like those of any other.

    Args:
        model: a causal language model without a plan.

    Returns:
        The plan that runs the same on the model from now on, in which each merged stage is its first layer alone; and
        the weights that were replaced, by name.

    Raises:
        UnsupportedModelError: the family cannot merge.
        PlanError: the plan is for another number of layers.
    """
    firsts = [stage.layers[0] for stage in plan.stages if stage.merged]
    if not firsts:
        return plan, {}
    family = family_of(model.config)
    merged = tuple(f"{family.layers}.{layer}." for layer in firsts)
    names = [name for name, _ in model.named_parameters() if name.startswith(merged)]
    originals = {name: model.get_parameter(name).detach().clone() for name in names}
    apply(model, plan)
    means = {name: model.get_parameter(name).detach().clone() for name in names}
    restore(model)
    with torch.no_grad():
        for name, mean in means.items():
            model.get_parameter(name).copy_(mean)
    stages = tuple(Stage(stage.layers_run) for stage in plan.stages)
    return replace(plan, stages=stages), originals
