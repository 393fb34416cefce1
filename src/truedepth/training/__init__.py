"""Training for depth: what makes exits usable, and what brings back the quality that a plan costs.

One folder for each kind of training; what all kinds share stands beside them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from truedepth.training.hooks.layer_calls import wrap_layers
    from truedepth.training.kinds import find_kind
    from truedepth.training.layerskip.exit_loss import training_exits
    from truedepth.training.layerskip.layer_dropout import LayerDropout
    from truedepth.training.layerskip.trainer import LayerSkipSettings, LayerSkipTrainer
    from truedepth.training.recovery.objective import Objective
    from truedepth.training.recovery.recipe import Recover, prepare_recovery
    from truedepth.training.recovery.trainer import RecoveryTrainer
    from truedepth.training.run import Kind, train
    from truedepth.training.trainer.depth_trainer import DepthTrainer
    from truedepth.training.trainer.figures import exit_name

__all__ = [
    "DepthTrainer",
    "Kind",
    "LayerDropout",
    "LayerSkipSettings",
    "LayerSkipTrainer",
    "Objective",
    "Recover",
    "RecoveryTrainer",
    "exit_name",
    "find_kind",
    "prepare_recovery",
    "train",
    "training_exits",
    "wrap_layers",
]

# Resolved on first use: they import torch and transformers, which takes seconds.
_LAZY = {
    "DepthTrainer": "trainer.depth_trainer",
    "Kind": "run",
    "LayerDropout": "layerskip.layer_dropout",
    "LayerSkipSettings": "layerskip.trainer",
    "LayerSkipTrainer": "layerskip.trainer",
    "Objective": "recovery.objective",
    "Recover": "recovery.recipe",
    "RecoveryTrainer": "recovery.trainer",
    "exit_name": "trainer.figures",
    "find_kind": "kinds",
    "prepare_recovery": "recovery.recipe",
    "train": "run",
    "training_exits": "layerskip.exit_loss",
    "wrap_layers": "hooks.layer_calls",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'truedepth.training' has no attribute '{name}'")
    return getattr(import_module(f"truedepth.training.{_LAZY[name]}"), name)
