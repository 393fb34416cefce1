"""LayerSkip's training (arXiv 2404.16710, section 4.1): layer dropout and early-exit loss, on any supported model.

Published settings:

| training | p_max | e_scale | curriculum | learning rate |
| --- | --- | --- | --- | --- |
| continual pre-training, Llama 2 7B | 0.1 | 0.2 | rotational, R = 8 | 3e-5 |
| fine-tuning on TOPv2, a Llama of 1.5B and 24 layers | 0.2 | 1.0 | gradual | 1e-4 |
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Self, cast

from pydantic import Field, model_validator
from torch import Tensor, nn

from truedepth.errors import UsageError
from truedepth.families import family_of
from truedepth.models.rewire import causal_lm
from truedepth.records.recipe import Settings
from truedepth.training.hooks.layer_calls import wrap_layers
from truedepth.training.layerskip.exit_loss import ExitObjective, training_exits
from truedepth.training.layerskip.exit_weights import exit_scales, exit_weights, gradual, rotational
from truedepth.training.layerskip.layer_dropout import LayerDropout, depth_factors, draw_skips, time_factor
from truedepth.training.trainer.depth_trainer import DepthTrainer
from truedepth.training.trainer.figures import exit_name


class LayerSkipSettings(Settings):
    """What LayerSkip's training has besides those of any training."""

    p_max: float = Field(default=0.1, ge=0, lt=1, description="probability that a sample skips the last layer")
    dropout_over_time: Literal["constant", "rising"] = Field(
        default="constant",
        description="S(t): 'constant' for a model that is trained already; 'rising' from scratch, where the "
        "probabilities grow from 0 to their full size",
    )
    e_scale: float = Field(default=0.2, ge=0, description="how much the exits before the last count")
    curriculum: Literal["rotational", "gradual"] = Field(
        default="rotational",
        description="'rotational': an exit every few layers, moved up by one layer each step; "
        "'gradual': from the last layer down, one more every T / 2L steps",
    )
    every: int | None = Field(
        default=None, ge=1, description="R: the layers between two exits of the rotational curriculum; 8 by default"
    )
    watch: tuple[int, ...] | None = Field(
        default=None,
        description="exits whose loss and agreement are logged, each by how many layers run; "
        "by default a quarter, half and three quarters of the model",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.curriculum == "gradual" and self.every is not None:
            raise ValueError("'every' goes with the rotational curriculum only")
        return self

    def probabilities(self, num_layers: int, step: int, total_steps: int) -> list[float]:
        """p(l, t) of each layer."""
        time = time_factor(step, total_steps) if self.dropout_over_time == "rising" else 1.0
        return [time * factor * self.p_max for factor in depth_factors(num_layers)]

    def weights(self, num_layers: int, step: int, total_steps: int) -> dict[int, float]:
        """ẽ(t, l) by layer, where it is positive."""
        if self.curriculum == "gradual":
            enabled = gradual(num_layers, step, total_steps)
        else:
            enabled = rotational(num_layers, step, self.every or 8)
        return exit_weights(exit_scales(num_layers, self.e_scale), enabled)

    def watched(self, num_layers: int) -> tuple[int, ...]:
        """The exits to log, ascending, as numbers of layers that run; the whole model is not among them.

        Raises:
            UsageError: the model has no such exit.
        """
        if self.watch is None:
            return tuple(sorted({num_layers * quarter // 4 for quarter in (1, 2, 3)} - {0, num_layers}))
        for layers in self.watch:
            if not 0 < layers < num_layers:
                raise UsageError(
                    f"there is no exit after {layers} layers to watch: the model has {num_layers}; "
                    f"give numbers from 1 to {num_layers - 1}"
                )
        return tuple(sorted(set(self.watch)))


class LayerSkipTrainer(DepthTrainer):
    """Trains a model so that its early exits can be used, and its layers can be left out.

    The loss is the weighted sum over exits; held-out loss is that of the last layer alone, so that trainings with and
    without exits can be compared. A sample, for layer dropout, is a row: all items packed into it.

    The loss is computed inside of the model's forward, and dropout around its layers' calls, so that PEFT, gradient
    checkpointing, mixed precision, and distributed and sharded data parallelism work as on any model.

    Args:
        model, others, options: see `DepthTrainer`.
        settings: of the method.

    Attributes:
        watched: the exits whose figures are logged, ascending, as numbers of layers that run.

    Raises:
        UnsupportedModelError: the model's family is unknown.
        UsageError: an exit to watch that the model does not have.
    """

    def __init__(self, model: nn.Module, *others: Any, settings: LayerSkipSettings, **options: Any) -> None:
        super().__init__(model, *others, **options)
        core = causal_lm(model)
        self._settings = settings
        self._num_layers = len(family_of(core.config).decoder_layers(core))
        self.watched = settings.watched(self._num_layers)
        self._dropout = LayerDropout()
        self._objective: ExitObjective | None = None

    @contextmanager
    def preparation(self) -> Iterator[None]:
        """The model with dropout and exits."""
        model = cast(nn.Module, self.model)
        with wrap_layers(model, self._dropout), training_exits(model) as objective:
            self._objective = objective
            try:
                yield
            finally:
                self._objective = None

    def loss_of(self, model: nn.Module, inputs: dict[str, Any], num_items: Tensor | int | None) -> tuple[Tensor, Any]:
        """The weighted loss of the step's exits; in evaluation, that of the last layer, and those watched beside it."""
        objective = cast(ExitObjective, self._objective)
        last = self._num_layers - 1
        if model.training:
            at = self.state.global_step, self.state.max_steps
            objective.weights = self._settings.weights(self._num_layers, *at)
            self._dropout.skips = self._skips(len(inputs["input_ids"]), *at)
        else:
            objective.weights = {**{layers - 1: 0.0 for layers in self.watched}, last: 1.0}
        result = super().loss_of(model, {**inputs, "use_cache": False, "logits_to_keep": 1}, num_items)
        self._note(objective, num_items)
        return result

    def _skips(self, rows: int, step: int, total_steps: int) -> Any:
        """What this micro-batch leaves out: its part of what is drawn for the step's batch over all ranks."""
        first = self.micro_batch * self.accelerator.num_processes + self.accelerator.process_index
        first *= self.args.train_batch_size
        probabilities = self._settings.probabilities(self._num_layers, step, total_steps)
        return draw_skips(probabilities, range(first, first + rows), self.args.seed, step)

    def _note(self, objective: ExitObjective, num_items: Tensor | int | None) -> None:
        found = objective.found
        tokens = max(found.tokens, 1)
        for layers in (*self.watched, self._num_layers):
            if layers - 1 not in found.losses:
                continue
            self.extra_losses[exit_name("loss", layers)] = self.per_token(found.losses[layers - 1], num_items, tokens)
            if layers < self._num_layers:
                agreed = self.per_token(found.agreed[layers - 1], num_items, tokens)
                self.extra_losses[exit_name("agreement", layers)] = agreed
