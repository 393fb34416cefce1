"""The loss of a model's exits: next-token losses of the outputs of several layers through the one norm and head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from truedepth.families import family_of
from truedepth.models.rewire import causal_lm
from truedepth.training.data.rows import IGNORED
from truedepth.training.hooks.custom_loss import own_loss
from truedepth.training.hooks.head_loss import SharedHead, next_token_loss, summed_losses
from truedepth.training.hooks.layer_calls import LayerCall, wrap_layers


@dataclass(frozen=True, slots=True)
class ExitFigures:
    """How exits fared over the tokens of a forward that the loss is over, by layer. Without gradients.

    Attributes:
        losses: cross-entropy in nats, summed over tokens; scalars.
        agreed: for how many tokens the exit's most likely one is the last layer's; scalars.
        tokens: their number.
    """

    losses: dict[int, Tensor]
    agreed: dict[int, Tensor]
    tokens: int


class ExitObjective:
    """What a model is trained on in `training_exits`. Say before each forward what `weights` are.

    Attributes:
        weights: ẽ(t, l) by layer; only these layers' exits are computed. Those of weight 0 are looked at only.
        found: what the last forward with labels came to.
    """

    def __init__(self, core: Any) -> None:
        self._head = SharedHead(core, family_of(core.config))
        self._hidden: dict[int, Tensor] = {}
        self.weights: dict[int, float] = {}
        self.found = ExitFigures({}, {}, 0)

    def __call__(self, layer: nn.Module, index: int, call: LayerCall, hidden: Tensor, inputs: dict[str, Any]) -> Tensor:
        hidden = call(hidden, **inputs)
        if index in self.weights:
            self._hidden[index] = hidden
        return hidden

    def loss(self, labels: Tensor, num_items: Tensor | int | None) -> Tensor:
        """The weighted sum over exits of the losses of the present forward, a scalar.

        Args:
            labels: (B, T) int64, not shifted: the token at position t is predicted from position t - 1.
            num_items: what the sum over tokens is divided by; None: their number.
        """
        hidden, self._hidden = self._hidden, {}
        targets = labels[:, 1:]
        loss_mask = targets != IGNORED  # (B, T - 1)
        targets = targets[loss_mask]  # (N,)
        layers = sorted(hidden, reverse=True)  # the last layer first: the others are compared with it
        states = [hidden[layer][:, :-1][loss_mask] for layer in layers]  # (N, D) each
        weights = [self.weights[layer] for layer in layers]
        found = summed_losses(self._head, states, weights, next_token_loss(targets))
        self.found = ExitFigures(
            losses=dict(zip(layers, found.each, strict=True)),
            agreed=dict(zip(layers, found.agreed, strict=True)),
            tokens=len(targets),
        )
        return found.total / (max(len(targets), 1) if num_items is None else num_items)


@contextmanager
def training_exits(model: nn.Module) -> Iterator[ExitObjective]:
    """Have a causal language model compute the losses of its exits, for as long as the context lasts.

    Args:
        model: bare or wrapped by PEFT. It needs the logits of no token: call it with `logits_to_keep=1`.

    Raises:
        UnsupportedModelError: the model's family is unknown.
    """
    core = causal_lm(model)
    objective = ExitObjective(core)
    with wrap_layers(core, objective), own_loss(core, objective.loss):
        yield objective
