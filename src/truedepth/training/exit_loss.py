"""The loss of several exits through one norm and head, without their logits in memory.

The logits of all exits would be the largest tensors of a training step: E exits times N tokens times the vocabulary.
Here they exist for a part of the tokens of one exit at a time. That part's loss and gradients are computed at once,
while its logits are there, so that nothing is computed again in the backward pass. What is kept for that pass are the
gradients of the hidden states, as large as these, and of norm and head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from truedepth.families import family_of
from truedepth.models.rewire import causal_lm
from truedepth.models.stages import to_logits
from truedepth.training.layer_calls import LayerCall, around_layers

LOGITS_AT_ONCE = 2**24
"""How many logits there are at a time. In float32, they and what their gradient needs take some 200 MB."""

IGNORED = -100
"""The label of a place without a loss."""

ToLogits = Callable[[Tensor], Tensor]
"""Norm and head: (n, D) to (n, V)."""


@dataclass(frozen=True, slots=True)
class ExitLosses:
    """The losses of some exits over the same tokens, by layer.

    Attributes:
        total: the weighted sum, a scalar; what is trained on.
        losses: mean cross-entropy in nats a token; scalars without gradients.
        agreements: share of the tokens where an exit's most likely token is that of the last one; scalars.
        tokens: how many tokens have a loss.
    """

    total: Tensor
    losses: dict[int, Tensor]
    agreements: dict[int, Tensor]
    tokens: int


def exit_losses(
    head: ToLogits,
    parameters: Sequence[nn.Parameter],
    hidden: Mapping[int, Tensor],
    weights: Mapping[int, float],
    labels: Tensor,
    num_items: Tensor | int | None = None,
    *,
    tokens_at_once: int,
) -> ExitLosses:
    """The weighted sum of the exits' next-token losses.

    Args:
        head: what all exits share.
        parameters: the head's.
        hidden: the outputs of layers, (B, T, D), by layer.
        weights: ẽ(t, l) of the same layers.
        labels: (B, T) int64, not shifted: the token at place t is predicted from place t - 1. `IGNORED` where there
            is no loss.
        num_items: what the sum over tokens is divided by; None: their number, for a mean.
        tokens_at_once: bounds the memory.
    """
    targets = labels[:, 1:]
    scored = targets != IGNORED  # (B, T - 1)
    targets = targets[scored]  # (N,)
    layers = sorted(hidden, reverse=True)  # the last layer first: its choices are what the others' are compared with
    states = [hidden[layer][:, :-1][scored] for layer in layers]  # (N, D) each
    total, losses, agreed = _SummedLosses.apply(  # type: ignore[no-untyped-call]
        head,
        tokens_at_once,
        targets,
        [weights[layer] for layer in layers],
        *states,
        *(parameter for parameter in parameters if parameter.requires_grad),
    )
    tokens = len(targets)
    return ExitLosses(
        total=total / (max(tokens, 1) if num_items is None else num_items),
        losses=dict(zip(layers, losses / max(tokens, 1), strict=True)),
        agreements=dict(zip(layers, agreed / max(tokens, 1), strict=True)),
        tokens=tokens,
    )


class _SummedLosses(torch.autograd.Function):
    """Losses, summed over tokens, and their gradients in one go.

    Returns the weighted sum over exits; each exit's own sum, (E,); and how often each agrees with the first, (E,).
    Only the first of the three has a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, head: ToLogits, tokens_at_once: int, targets: Tensor, weights: Sequence[float], *tensors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        states, parameters = tensors[: len(weights)], tensors[len(weights) :]
        # Of the states each place has one part, of the parameters all parts are added up: in float32 at least.
        gradients = [
            torch.zeros_like(tensor, dtype=tensor.dtype if at < len(states) else _precise(tensor)) if need else None
            for at, (tensor, need) in enumerate(zip(tensors, ctx.needs_input_grad[4:], strict=True))
        ]
        learning = any(gradient is not None for gradient in gradients)
        losses = torch.zeros(len(states), dtype=_precise(states[0]), device=targets.device)
        agreed = torch.zeros_like(losses)
        for begin in range(0, len(targets), tokens_at_once):
            part = slice(begin, begin + tokens_at_once)
            reference: Tensor | None = None
            for at, state in enumerate(states):
                with torch.set_grad_enabled(learning):
                    rows = state[part].detach().requires_grad_(learning)  # (n, D)
                    logits = head(rows).to(losses.dtype)  # (n, V)
                    loss = cross_entropy(logits, targets[part], reduction="sum")
                    weighted = loss * weights[at]
                choices = logits.argmax(-1)  # (n,)
                reference = choices if reference is None else reference
                losses[at] += loss.detach()
                agreed[at] += (choices == reference).sum()
                if learning and weights[at]:
                    own, *shared = torch.autograd.grad(weighted, [rows, *parameters], allow_unused=True)
                    _add(gradients[at], own, part)
                    for total, gradient in zip(gradients[len(states) :], shared, strict=True):
                        _add(total, gradient)
        ctx.gradients = [
            None if gradient is None else gradient.to(tensor.dtype)
            for gradient, tensor in zip(gradients, tensors, strict=True)
        ]
        ctx.mark_non_differentiable(losses, agreed)
        return (losses * losses.new_tensor(weights)).sum(), losses, agreed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # freed as soon as they are passed on
        scaled = (None if gradient is None else gradient.mul_(upstream[0]) for gradient in gradients)
        return (*([None] * 4), *scaled)


def _add(total: Tensor | None, gradient: Tensor | None, part: slice = slice(None)) -> None:
    if total is not None and gradient is not None:
        total[part] += gradient


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


class ExitObjective:
    """What a model under `training_exits` is trained on. Say before each forward what `weights` are.

    The model's own loss function is replaced, and the loss is computed inside of its forward, where wrappers for
    distributed training and mixed precision expect it. It needs the logits of no token: call the model with
    `logits_to_keep=1`.

    Attributes:
        weights: ẽ(t, l) by layer; the layers whose exits are computed. Those of weight 0 are only looked at.
        found: what the last forward with labels came to.
    """

    def __init__(self, core: Any) -> None:
        self._core = core
        self._family = family_of(core.config)
        self._hidden: dict[int, Tensor] = {}
        self.weights: dict[int, float] = {}
        self.found: ExitLosses | None = None

    def __call__(self, layer: nn.Module, index: int, call: LayerCall, hidden: Tensor, inputs: dict[str, Any]) -> Tensor:
        hidden = call(hidden, **inputs)
        if index in self.weights:
            self._hidden[index] = hidden
        return hidden

    def loss_function(
        self,
        logits: Tensor,
        labels: Tensor,
        vocab_size: int,
        num_items_in_batch: Tensor | int | None = None,
        **ignored: Any,
    ) -> Tensor:
        """See `exit_losses`; the signature is that of `transformers`' loss functions. The logits are not looked at."""
        hidden, self._hidden = self._hidden, {}
        modules = [self._core.get_submodule(name) for name in (self._family.final_norm, self._family.head)]
        self.found = exit_losses(
            lambda rows: to_logits(self._core, self._family, rows),
            [parameter for module in modules for parameter in module.parameters()],
            hidden,
            self.weights,
            labels,
            num_items_in_batch,
            tokens_at_once=max(1, LOGITS_AT_ONCE // vocab_size),
        )
        return self.found.total


@contextmanager
def training_exits(model: nn.Module) -> Iterator[ExitObjective]:
    """Have a causal language model compute the losses of its exits, for as long as the context lasts.

    Args:
        model: bare or wrapped by PEFT.

    Raises:
        UnsupportedModelError: the model's family is unknown.
    """
    core = causal_lm(model)
    objective = ExitObjective(core)
    own = vars(core).get("_loss_function")
    with around_layers(core, objective):
        core.loss_function = objective.loss_function
        try:
            yield objective
        finally:
            del core._loss_function
            if own is not None:
                core.loss_function = own
