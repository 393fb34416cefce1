"""The model as it was before training, as a teacher in the memory of the model that is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from truedepth.families import Family
from truedepth.models.rewire import applied_plan, apply, restore
from truedepth.models.stages import to_logits
from truedepth.training.hooks.hidden_states import Reading, reading


class Teacher:
    """The model without a plan, and with the weights that it has when this is made.

    Weights that are not trained are the model's own; there is a copy only of those that are.

    Args:
        core: the causal language model, with its adapters, if any, in place; fresh ones have no effect. Its trained
            parameters are marked by `requires_grad`.
        originals: weights instead of the model's, by the names that they have without adapters.
    """

    def __init__(self, core: Any, family: Family, originals: Mapping[str, Tensor]) -> None:
        self._core, self._family = core, family
        copies: dict[int, Tensor] = {}
        self._own: dict[str, Tensor] = {}
        for name, parameter in core.named_parameters(remove_duplicate=False):  # tied ones, by each of their names
            if (original := originals.get(name.replace(".base_layer.", "."))) is not None:
                self._own[name] = original
            elif parameter.requires_grad:
                if id(parameter) not in copies:
                    copies[id(parameter)] = parameter.detach().clone()
                self._own[name] = copies[id(parameter)]
        self._head = _Head(core, family)

    @torch.no_grad()
    def read(self, inputs: Mapping[str, Any], layers: Sequence[int] = ()) -> Reading:
        """The hidden states over a batch, in evaluation mode.

        Args:
            inputs: what the model is called with.
            layers: whose outputs are wanted.
        """
        plan, training = applied_plan(self._core), self._core.training
        given = {**inputs, "use_cache": False, "logits_to_keep": 1}
        restore(self._core)
        self._core.eval()
        try:
            with reading(self._core, self._family, layers) as states:
                functional_call(self._core, self._own, kwargs=given)
        finally:
            self._core.train(training)
            if plan is not None:
                apply(self._core, plan)
        return states

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Of what goes into the final norm: (n, D) to (n, V)."""
        logits: Tensor = functional_call(
            self._head, {f"core.{name}": value for name, value in self._own.items()}, (hidden,)
        )
        return logits


class _Head(nn.Module):
    """Final norm and head as a module, so that other weights can be put in."""

    def __init__(self, core: nn.Module, family: Family) -> None:
        super().__init__()
        self.core = core
        self._family = family

    def forward(self, hidden: Tensor) -> Tensor:
        model: Any = self.core
        return to_logits(model, self._family, hidden)
