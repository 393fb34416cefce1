"""Training for depth: what makes exits usable, and what brings back the quality that a plan costs.

One folder for each kind of training; what all kinds share stands beside them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from truedepth.records.lazy import lazy_names

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

_LAZY = {
    "DepthTrainer": "truedepth.training.trainer.depth_trainer",
    "Kind": "truedepth.training.run",
    "LayerDropout": "truedepth.training.layerskip.layer_dropout",
    "LayerSkipSettings": "truedepth.training.layerskip.trainer",
    "LayerSkipTrainer": "truedepth.training.layerskip.trainer",
    "Objective": "truedepth.training.recovery.objective",
    "Recover": "truedepth.training.recovery.recipe",
    "RecoveryTrainer": "truedepth.training.recovery.trainer",
    "exit_name": "truedepth.training.trainer.figures",
    "find_kind": "truedepth.training.kinds",
    "prepare_recovery": "truedepth.training.recovery.recipe",
    "train": "truedepth.training.run",
    "training_exits": "truedepth.training.layerskip.exit_loss",
    "wrap_layers": "truedepth.training.hooks.layer_calls",
}

__getattr__, __dir__ = lazy_names(__name__, _LAZY)
