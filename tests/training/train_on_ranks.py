"""A recipe of a kind of its own, run by `test_ranks.py` in one process or several.

python train_on_ranks.py RECIPE FOLDER [--resume] [--interrupt STEP] [--break STEP]
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any, Literal

import torch

from truedepth.errors import TruedepthError
from truedepth.training.recipe import TrainingRecipe
from truedepth.training.results import ProductRecord
from truedepth.training.run import Training, save_model, train
from truedepth.training.trainer.depth_trainer import DepthTrainer
from truedepth.training.trainer.pace import Snapshot


class PlainRecipe(TrainingRecipe):
    kind: Literal["plain"] = "plain"


class Plain:
    """Language-model fine-tuning; in step `broken` one of the ranks has a loss that is not a number."""

    recipe = PlainRecipe

    def __init__(self, broken: int | None) -> None:
        self._broken = broken

    def trainer(self, training: Training[PlainRecipe]) -> DepthTrainer:
        broken = self._broken

        class Trainer(DepthTrainer):
            def compute_loss(self, *args: Any, **named: Any) -> Any:
                loss = super().compute_loss(*args, **named)
                bad = self.state.global_step + 1 == broken and self.args.process_index == self.args.world_size - 1
                return loss * math.nan if bad else loss

        return Trainer(training.loaded.model, **training.options)

    def product(self, training: Training[PlainRecipe], trainer: DepthTrainer) -> ProductRecord:
        path = save_model(training, trainer)
        return ProductRecord(description="The trained model", path=path.name, figures={}, commands=[])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--interrupt", type=int)
    parser.add_argument("--break", dest="broken", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)

    def on_snapshot(snapshot: Snapshot) -> None:
        # As Ctrl-C, which the launcher gets too, and passes on. On the first rank only.
        if snapshot.step == options.interrupt:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getppid(), signal.SIGINT)

    recipe = PlainRecipe.load(options.recipe)
    try:
        results = train(Plain(options.broken), recipe, options.folder, resume=options.resume, on_snapshot=on_snapshot)
        print("results" if results else "no results")
    except KeyboardInterrupt:
        print("interrupted")
    except TruedepthError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
