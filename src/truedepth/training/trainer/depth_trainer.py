"""The base of all our trainers: what they share in losses, figures, and the judging of held-out text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import TrainingArguments

from truedepth.errors import TrainingError
from truedepth.training.data.rows import TokenRows
from truedepth.training.trainer.checkpoints import last_checkpoint
from truedepth.training.trainer.exact_trainer import ExactTrainer
from truedepth.training.trainer.figures import FIGURES_FILE, Figures, FiguresFile
from truedepth.training.trainer.pace import Pace, Snapshot
from truedepth.training.trainer.row_order import EvenRows

NOT_FOR_MODELS = ("row", "response_start")
"""What rows have besides a model's own arguments."""


class DepthTrainer(ExactTrainer):
    """A `transformers.Trainer` whose subclasses only say what the loss is.

    A subclass overrides `loss_of`. It gets rows as `TokenRows` describes them, without `row`; it divides sums over
    tokens by `per_token`, and puts figures of the same kind into `extra_losses`. It calls the model that it is given,
    not only modules within: by that call ranks exchange gradients. Whatever it draws at random it draws from a
    generator seeded by `args.seed`, `state.global_step` and `micro_batch` (and the rank, where ranks are to differ), so
    that a resumed training draws the same without anything being stored.

    What it adds to `ExactTrainer`:

    - A loss or gradient that is not a number ends the training with `TrainingError`, which names the step and the
      items; the model is not changed by it, and no checkpoint is written.
    - `training.jsonl` gets all figures that are logged. A resumed training goes on with them: on the CPU its losses
      equal those of one that was never interrupted, bit for bit.
    - Held-out loss and figures are means over tokens, however rows fall into batches and ranks.

    Args:
        model, args, options: see `ExactTrainer`.
        train_dataset, eval_dataset: `TokenRows`, or others together with their `data_collator`.
        on_snapshot: called after each step, each log and each evaluation, on the first rank only.

    Attributes:
        extra_losses: filled by `loss_of`: figures of this micro-batch, by the names that are logged; those of an
            exit are named by `exit_name`. Like the loss, they add up over the micro-batches of a step and are averaged
            over ranks: divide sums over tokens by `per_token`.
        micro_batch: the number of the present micro-batch in its step, from 0.
    """

    # `loss_of` divides by the tokens of the whole step, so that micro-batches add up.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        train_dataset: Dataset[dict[str, Tensor]],
        eval_dataset: Dataset[dict[str, Tensor]] | None = None,
        *,
        on_snapshot: Callable[[Snapshot], None] = lambda snapshot: None,
        **options: Any,
    ) -> None:
        if isinstance(train_dataset, TokenRows):
            options.setdefault("data_collator", train_dataset.collate)
        super().__init__(model, args, train_dataset, eval_dataset=eval_dataset, **options)
        self.model_accepts_loss_kwargs = True
        self.extra_losses: dict[str, Tensor | float] = {}
        self.micro_batch = 0
        self._step_rows: list[Tensor | None] = []
        self._on_snapshot = on_snapshot
        self._pace = Pace()
        self._file: FiguresFile | None = None
        self._latest: dict[str, float] = {}

    def per_token(self, total: Tensor, num_items: Tensor | int | None, tokens: Tensor | int) -> Tensor:
        """What a sum over this micro-batch's tokens adds to the mean over all tokens of the step.

        Args:
            total: the sum.
            num_items: what `loss_of` was given: labels of the step, over all its micro-batches and ranks.
            tokens: those of this micro-batch. They count where `num_items` is None, which it is where rows have no
                `labels`: micro-batches then all weigh the same.
        """
        if num_items is None:
            model = cast(nn.Module, self.model)
            return total / tokens / (self.current_gradient_accumulation_steps if model.training else 1)
        # Gradients, and figures, are averaged over ranks.
        ranks = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return total * ranks / num_items

    # Training

    def begin_training(self, step: int) -> None:
        """The figures of a resumed training go on after its checkpoint's."""
        self._pace = Pace()
        self._file = FiguresFile(self._folder / FIGURES_FILE, step) if self.is_world_process_zero() else None

    @property
    def trained_parameters(self) -> int:
        """How many parameters are trained."""
        model = cast(nn.Module, self.model)
        return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One micro-batch, forwards and backwards; refuses a loss that is not a number."""
        rows: Tensor | None = inputs.pop("row", None)
        self.extra_losses.clear()
        loss = super().training_step(model, inputs, num_items_in_batch)
        value = float(loss)
        if not math.isfinite(value):
            raise TrainingError(self._not_a_number(f"loss is {value}", f", micro-batch {self.micro_batch + 1}", [rows]))
        self._meter.add({"loss": value, **{name: float(figure) for name, figure in self.extra_losses.items()}})
        self._pace.add(self._count(rows, inputs))
        self._step_rows.append(rows)
        self.micro_batch += 1
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """What transformers asks for; see `loss_of`."""
        with self.prepared():
            loss, outputs = self.loss_of(model, inputs, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def loss_of(self, model: nn.Module, inputs: dict[str, Any], num_items: Tensor | int | None) -> tuple[Tensor, Any]:
        """The loss of a micro-batch, and what the model put out; here the mean cross-entropy over labels.

        Args:
            inputs: a batch of rows.
            num_items: how many labels the step has; see `per_token`.
        """
        own = {name: value for name, value in inputs.items() if name not in NOT_FOR_MODELS}
        result: Any = super().compute_loss(model, own, True, num_items)
        return result[0], result[1]

    def compute_loss_context_manager(self) -> ExitStack:
        """Mixed precision for all of `compute_loss`; accelerate gives it to the model's own forward only."""
        stack = ExitStack()
        stack.enter_context(self.accelerator.autocast())
        return stack

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> float | None:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        # With float16, gradients that overflow are expected: the scaler leaves the step out and scales less.
        if norm is not None and not math.isfinite(norm) and getattr(self.accelerator, "scaler", None) is None:
            raise TrainingError(self._not_a_number(f"gradient is {float(norm)}", "", self._step_rows))
        return None if norm is None else float(norm)

    def _not_a_number(self, finding: str, within: str, rows: Sequence[Tensor | None]) -> str:
        last = last_checkpoint(self._folder)
        return (
            f"the {finding} in step {self.state.global_step + 1}{within}{self._where(rows)}; lower the learning rate, "
            "lengthen the warm-up, or look at these items. "
            f"{f'The last checkpoint, {last}, is as it was.' if last else 'There is no checkpoint yet.'}"
        )

    def _where(self, rows: Sequence[Tensor | None]) -> str:
        """Where the items of micro-batches came from, where that is known."""
        dataset = self.train_dataset
        if not isinstance(dataset, TokenRows):
            return ""
        sources = [dataset.where(row) for part in rows if part is not None for row in part.tolist()]
        return f", made of {' | '.join(sources)}" if sources else ""

    def _count(self, rows: Tensor | None, inputs: Mapping[str, Any]) -> int:
        """Tokens of a micro-batch, filling left out where it is known."""
        if rows is not None and isinstance(self.train_dataset, TokenRows):
            return int(self.train_dataset.lengths[rows.cpu()].sum())
        ids = inputs.get("input_ids")
        return ids.numel() if isinstance(ids, Tensor) else 0

    def begin_step(self) -> None:
        """Called before each step."""
        self.micro_batch, self._step_rows = 0, []
        self._pace.begin_step()

    def end_step(self) -> bool:
        """Called after each step; whether the training is to end here."""
        self._pace.end_step()
        self._show()
        return super().end_step()

    # Figures

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log figures: to `training.jsonl`, the callbacks and the display."""
        if "loss" in logs:
            means = self.over_ranks(self._meter.means())
            tokens_per_second = self._pace.tokens_per_second * self.accelerator.num_processes
            logs = {**logs, **means, "tokens_per_second": tokens_per_second}
            self._meter.reset()
        super().log(logs, start_time)
        if "train_runtime" in logs:  # transformers' summary at the end
            return
        epoch = float(logs.pop("epoch", 0.0))
        self._latest.update(logs)
        if self._file is not None:
            seconds = self._file.seconds + self._pace.seconds
            self._file.write(Figures(self.state.global_step, epoch, seconds, logs))
        self._show()

    def _show(self) -> None:
        if not self.is_world_process_zero():
            return
        left = max(self.state.max_steps - self.state.global_step, 0)
        self._on_snapshot(
            Snapshot(
                step=self.state.global_step,
                total_steps=self.state.max_steps,
                tokens_per_second=self._pace.tokens_per_second * self.accelerator.num_processes,
                seconds_left=left * self._pace.seconds_per_step,
                figures=dict(self._latest),
            )
        )

    # Held-out text

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Batches of held-out rows, as many on each rank."""
        rows: Any = eval_dataset if eval_dataset is not None else self.eval_dataset
        rows = EvenRows(rows, self.args.eval_batch_size * self.accelerator.num_processes)
        return super().get_eval_dataloader(rows)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss and figures over all tokens of the held-out rows, logged and returned as `eval_loss` and so on."""
        model = cast(nn.Module, self.model)
        was_training, held = model.training, dict(self.extra_losses)
        model.eval()
        # A training draws the same numbers however often it is judged.
        with self.prepared(), torch.random.fork_rng(devices=[]), torch.no_grad():
            means = self._held_out_means(model, self.get_eval_dataloader(eval_dataset))
        model.train(was_training)
        self.extra_losses = held
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _held_out_means(self, model: nn.Module, batches: Iterable[dict[str, Any]]) -> dict[str, float]:
        sums: dict[str, float] = {}
        tokens = 0.0
        for batch in batches:
            batch.pop("row", None)
            self.extra_losses.clear()
            inputs = self._prepare_inputs(batch)
            count = self._get_num_items_in_batch([inputs], self.args.device)
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, inputs, num_items_in_batch=count)
            weight = float(count) if count is not None else 1.0
            for name, value in {"loss": loss, **self.extra_losses}.items():
                sums[name] = sums.get(name, 0.0) + float(value) * weight
            tokens += weight
        return self.over_ranks({name: total / tokens for name, total in sums.items()})
