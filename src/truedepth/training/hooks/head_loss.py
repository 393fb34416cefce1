"""Losses of many hidden states through one norm and head, without their logits in memory.

The logits of a batch are the largest tensors of a training step, and those of several exits would be so several times
over. Here logits exist for a part of the tokens of one set of states at a time. That part's loss and gradients are
computed at once, while its logits are there, so that nothing is computed again in the backward pass. What is kept for
that pass are the gradients of the hidden states, as large as these, and of norm and head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from truedepth.families import Family
from truedepth.models.stages import to_logits

LOGITS_AT_ONCE = 2**24
"""How many logits there are at a time. In float32, they and what their gradient needs take some 200 MB."""

Criterion = Callable[[Tensor, slice], Tensor]
"""The loss of logits, (n, V) in float32, of the tokens in a slice of all: a scalar, summed over these."""


class SharedHead:
    """The final norm and the LM head of a model, as one function of hidden states.

    Args:
        core: the causal language model.
    """

    def __init__(self, core: Any, family: Family) -> None:
        self._core, self._family = core, family

    def __call__(self, hidden: Tensor) -> Tensor:
        """(n, D) to (n, V)."""
        return to_logits(self._core, self._family, hidden)

    def trainable(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        modules = [self._core.get_submodule(name) for name in (self._family.final_norm, self._family.head)]
        return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]

    @property
    def tokens_at_once(self) -> int:
        """How many tokens' logits are held at a time."""
        return max(1, LOGITS_AT_ONCE // int(self._core.config.vocab_size))


@dataclass(frozen=True, slots=True)
class SummedLosses:
    """Losses of E sets of states over the same tokens.

    Attributes:
        total: the weighted sum over sets and tokens, a scalar with gradients.
        each: of each set, summed over tokens, (E,); without gradients.
        agreed: for how many tokens the most likely one is that of the first set, (E,); without gradients.
    """

    total: Tensor
    each: Tensor
    agreed: Tensor


def summed_losses(
    head: SharedHead, states: Sequence[Tensor], weights: Sequence[float], criterion: Criterion
) -> SummedLosses:
    """The losses of several sets of hidden states.

    Args:
        states: (N, D) each.
        weights: of each set's loss in the total. A set of weight 0 gets no gradient.
    """
    return SummedLosses(
        *_SummedLosses.apply(  # type: ignore[no-untyped-call]
            head, criterion, head.tokens_at_once, weights, *states, *head.trainable()
        )
    )


def next_token_loss(targets: Tensor) -> Criterion:
    """Cross-entropy with (N,) tokens."""
    return lambda logits, part: cross_entropy(logits, targets[part], reduction="sum")


class _SummedLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        head: Callable[[Tensor], Tensor],
        criterion: Criterion,
        tokens_at_once: int,
        weights: Sequence[float],
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        states, parameters = tensors[: len(weights)], tensors[len(weights) :]
        # Each token of the states is in one part; the parameters' gradients are added up, in float32 at least.
        gradients = [
            torch.zeros_like(tensor, dtype=tensor.dtype if at < len(states) else _precise(tensor)) if need else None
            for at, (tensor, need) in enumerate(zip(tensors, ctx.needs_input_grad[4:], strict=True))
        ]
        training = any(gradient is not None for gradient in gradients)
        losses = torch.zeros(len(states), dtype=_precise(states[0]), device=states[0].device)
        agreed = torch.zeros_like(losses)
        for begin in range(0, len(states[0]), tokens_at_once):
            part = slice(begin, begin + tokens_at_once)
            reference: Tensor | None = None
            for at, state in enumerate(states):
                with torch.set_grad_enabled(training):
                    rows = state[part].detach().requires_grad_(training)  # (n, D)
                    logits = head(rows).to(losses.dtype)  # (n, V)
                    loss = criterion(logits, part)
                    weighted = loss * weights[at]
                choices = logits.argmax(-1)  # (n,)
                reference = choices if reference is None else reference
                losses[at] += loss.detach()
                agreed[at] += (choices == reference).sum()
                if training and weights[at]:
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
