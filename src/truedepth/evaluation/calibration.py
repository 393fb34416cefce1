"""What a model does with calibration text, layer by layer, and what plans would make of it.

One ordinary forward records what each layer is given. Plans are then judged by running only their stages, from
the last hidden state that they share: with the unmodified model, and with each other.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from truedepth.errors import PlanError
from truedepth.evaluation.layer_statistics import LayerStatistics
from truedepth.evaluation.plan_tree import key_of, last_states
from truedepth.evaluation.quality import CONTEXT
from truedepth.families import family_of
from truedepth.models.adapters import require_in_layers
from truedepth.models.rewire import causal_lm, restore
from truedepth.models.stages import LayerInputs, run_group, to_logits
from truedepth.plan import DepthPlan, Form, Stage
from truedepth.records.progress import Progress, silent


@dataclass
class Calibration(LayerStatistics):
    """The `Evidence` of a real model. Made by `calibrate`.

    Attributes:
        model: a causal language model without a plan.
        windows: the text, (N, T) int64 on the model's device.
        hidden: the input of each layer and, last, the output of the last one: L + 1 tensors (N, T, D).
        inputs: what else each layer is given.
        every: score every token after the context (1), every second one (2), and so on. For small models the LM head
            is as dear as a third of all layers, and neighbouring tokens say much the same about a plan.
        known: losses by `key_of` a plan; those that are computed are added.
    """

    model: PreTrainedModel
    windows: Tensor
    hidden: list[Tensor]
    inputs: list[LayerInputs]
    every: int = 1
    progress: Progress = silent
    known: MutableMapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._family = family_of(self.model.config)
        self._layers = self._family.decoder_layers(self.model)

    def losses(self, plans: Sequence[DepthPlan]) -> list[float]:
        """Mean cross-entropy (nats a token) of the scored tokens under each plan.

        Stages that plans begin with alike run once for all of them.

        Raises:
            PlanError: a plan with merged layers, whose weights only `apply` makes, or with `prefill="full"`.
        """
        for plan in plans:
            if plan.prefill == "full" or any(stage.merged for stage in plan.stages):
                raise PlanError(f"calibration judges plans that skip and group layers in prefill too, not '{plan}'")
        with torch.inference_mode():
            for key, hidden in last_states(plans, self.known, self.hidden, self._run, self.progress, "Judging plans"):
                self.known[key] = self._cross_entropy(hidden)
        return [self.known[key_of(plan)] for plan in plans]

    def _run(self, stage: Stage, form: Form, hidden: Tensor) -> Tensor:
        layers = [self._layers[index] for index in stage.layers]
        inputs = [self.inputs[index] for index in stage.layers]
        if stage.is_group:
            return run_group(layers, inputs, self._family, form, hidden)
        output: Tensor = layers[0](hidden, **inputs[0])  # (N, T, D)
        return output

    def _cross_entropy(self, hidden: Tensor) -> float:
        losses = []
        for states, ids in zip(hidden, self.windows, strict=True):  # a window at a time: logits are large
            logits = to_logits(self.model, self._family, states[CONTEXT : -1 : self.every])  # (S, V)
            losses.append(cross_entropy(logits.float(), ids[CONTEXT + 1 :: self.every]).item())
        return sum(losses) / len(losses)


def calibrate(model: PreTrainedModel, windows: Tensor, progress: Progress = silent, *, every: int = 1) -> Calibration:
    """Run calibration text through the model once, recording what each layer is given.

    Args:
        model: a supported causal language model, bare or wrapped by PEFT; a plan that it runs is taken off.
        windows: token ids, (N, T) int64.
        every: see `Calibration`.

    Raises:
        UnsupportedModelError: the family is unknown, or an adapter or a hook acts outside of the model's layers.
    """
    require_in_layers(model)
    model = causal_lm(restore(model))
    family = family_of(model.config)
    layers = family.decoder_layers(model)
    windows = windows.to(model.device)
    hidden: list[Tensor] = []
    inputs: list[LayerInputs] = []

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden.append(args[0])
        inputs.append(kwargs)
        advance()

    def record_last(_: nn.Module, args: tuple[Any, ...]) -> None:
        hidden.append(args[0])

    with ExitStack() as stack:
        advance = stack.enter_context(progress("Reading calibration text", len(layers)))
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(record, with_kwargs=True).remove)
        final_norm = model.get_submodule(family.final_norm)
        stack.callback(final_norm.register_forward_pre_hook(record_last).remove)
        stack.enter_context(torch.inference_mode())
        model(windows, use_cache=False, logits_to_keep=1)
    return Calibration(model, windows, hidden, inputs, every, progress)
