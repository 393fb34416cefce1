"""`transformers.Trainer` with exact resume: rows in a fixed order, whole checkpoints, and an end between two steps."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Iterator, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from truedepth.models.loading.quiet import quiet_transformers
from truedepth.training.trainer.checkpoints import (
    aside_folder,
    checkpoint_folder,
    checkpoint_of,
    load_meter,
    named_failures,
    put_in_place,
    save_meter,
    step_of,
)
from truedepth.training.trainer.figures import Meter
from truedepth.training.trainer.interruption import Interruption
from truedepth.training.trainer.row_order import WholeSteps


class ExactTrainer(Trainer):
    """A `transformers.Trainer` that can be interrupted, and goes on as if it had not been.

    - The order of rows depends on the seed and the epoch only, and each step has all its rows.
    - A checkpoint is written aside and renamed when it is whole. Where that fails, the one before is still there.
    - Ctrl-C or SIGTERM ends it after the step, with a checkpoint; `train` then raises KeyboardInterrupt.

    For rows and checkpoints it overrides private methods of `Trainer`, those that begin with an underscore.

    Args:
        model, args, options: as `Trainer` takes them. `args` is copied, and in the copy rows keep all their fields and
            the loss is logged as it is.
    """

    def __init__(
        self, model: nn.Module, args: TrainingArguments, train_dataset: Dataset[dict[str, Tensor]], **options: Any
    ) -> None:
        args = copy.copy(args)
        args.remove_unused_columns = False
        args.logging_nan_inf_filter = False
        args.disable_tqdm = True
        config: Any = getattr(model, "config", None)
        self._use_cache = getattr(config, "use_cache", None)
        super().__init__(model, args, train_dataset=train_dataset, **options)
        self.remove_callback(PrinterCallback)
        self.add_callback(_StepCallback(self))
        self._folder = Path(str(args.output_dir))
        self._aside: Path | None = None
        self._meter, self._interruption = Meter(), Interruption()
        self._is_prepared = False

    def preparation(self) -> AbstractContextManager[None]:
        """What a subclass puts on the model for as long as it computes losses; nothing here."""
        return nullcontext()

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """The model within `preparation`; nothing to do where it is there already."""
        if self._is_prepared:
            yield
            return
        self._is_prepared = True
        try:
            with self.preparation():
                yield
        finally:
            self._is_prepared = False

    def train(  # type: ignore[override]  # of transformers' further arguments, none fits our trainers
        self, resume_from_checkpoint: str | bool | None = None
    ) -> TrainOutput:
        """Train, from the start or from a checkpoint.

        Args:
            resume_from_checkpoint: a checkpoint's folder, or True for the last one in `args.output_dir`.

        Raises:
            TrainingError: a loss or gradient that is not a number; a checkpoint that cannot be resumed from.
            OutputError: a checkpoint or figures cannot be written.
            KeyboardInterrupt: by Ctrl-C or SIGTERM, after a checkpoint was written.
        """
        checkpoint = checkpoint_of(self._folder, resume_from_checkpoint)
        self._meter = load_meter(checkpoint) if checkpoint else Meter()
        set_seed(self.args.seed)  # again, since what was made after this trainer may have drawn numbers too
        self.begin_training(step_of(checkpoint) if checkpoint else 0)
        if checkpoint and (finished := self._finished(checkpoint)):
            return finished
        with self.prepared(), self._interruption, quiet_transformers():
            output = super().train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if self._interruption.asked:
            raise KeyboardInterrupt
        return output

    def _finished(self, checkpoint: Path) -> TrainOutput | None:
        """The end of a training whose last checkpoint has all steps: transformers would make one more."""
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if state.global_step < state.max_steps:
            return None
        super()._load_from_checkpoint(str(checkpoint))
        self.state = state
        return TrainOutput(state.global_step, math.nan, {})

    def begin_training(self, step: int) -> None:
        """Called before the steps after `step`, 0 or that of a checkpoint."""

    def begin_step(self) -> None:
        """Called before each step."""

    def end_step(self) -> bool:
        """Called after each step; whether the training is to end here, on all ranks alike."""
        self._meter.end_step()
        if self.accelerator.num_processes > 1:
            asked = torch.tensor(float(self._interruption.asked), device=self.accelerator.device)
            self._interruption.asked = bool(self.accelerator.reduce(asked) > 0)
        return self._interruption.asked

    def over_ranks(self, values: dict[str, float]) -> dict[str, float]:
        """The mean of each figure over all ranks, which have the same figures."""
        if self.accelerator.num_processes == 1 or not values:
            return values
        own = torch.tensor(list(values.values()), dtype=torch.float64, device=self.accelerator.device)
        means: Tensor = self.accelerator.reduce(own, reduction="mean")
        return dict(zip(values, means.tolist(), strict=True))

    # The order of rows

    def _get_train_sampler(self, train_dataset: Any = None) -> WholeSteps:
        per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.accelerator.num_processes
        rows = len(cast(Sized, train_dataset if train_dataset is not None else self.train_dataset))
        self._sampler = WholeSteps(rows, per_step, self.args.seed)
        return self._sampler

    def _run_epoch(self, **options: Any) -> None:  # type: ignore[override]  # passed on as they are
        # accelerate tells a sampler its epoch, but not where several ranks resume within one.
        self._sampler.epoch = options["epoch"]
        super()._run_epoch(**options)  # type: ignore[no-untyped-call]  # as above

    # Checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._aside) if self._aside else super()._get_output_dir(trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self._use_cache is None:
            super()._save(output_dir, state_dict)
            return
        config: Any = cast(nn.Module, self.model).config
        # While it trains, a model keeps no cache; whoever generates with what is saved wants one.
        training, config.use_cache = config.use_cache, self._use_cache
        try:
            super()._save(output_dir, state_dict)
        finally:
            config.use_cache = training

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        step = self.state.global_step
        aside = aside_folder(self._folder, step)
        means = self.over_ranks(self._meter.sums)
        first = self.is_world_process_zero()
        if first:
            shutil.rmtree(aside, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        with named_failures(aside, checkpoint_folder(self._folder, step), self._folder):
            self._aside = aside
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._aside = None
            self.accelerator.wait_for_everyone()
            if first:
                save_meter(Meter(means, self._meter.steps), checkpoint_folder(aside, step))
                put_in_place(aside, self._folder, step, self.args.save_total_limit)
        self.accelerator.wait_for_everyone()


class _StepCallback(TrainerCallback):
    """Calls a trainer before and after its steps, and ends the loop when the trainer is asked to."""

    def __init__(self, trainer: ExactTrainer) -> None:
        self._trainer = trainer

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._trainer.begin_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if self._trainer.end_step():
            control.should_save = True
            control.should_training_stop = True
        return control
