"""How one stage computes, composed of the model's own modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from truedepth.families import Family
from truedepth.plan import Form

LayerInputs = Mapping[str, Any]
"""The keyword arguments that the model hands to a decoder layer: mask, position embeddings, cache, ..."""

SHARD = "truedepth_shard"
"""The attribute of a decoder layer of which several ranks hold a part each; see `truedepth.parallel`."""


class Shard(Protocol):
    """What one rank holds of a decoder layer.

    Attributes:
        held: whether it holds anything of it.
    """

    held: bool

    def add(self, hidden: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """x plus the outputs of all ranks' branches, of which `outputs` are this rank's: (B, T, D) each."""
        ...


def shard_of(layer: nn.Module) -> Shard | None:
    """The part that this rank holds of a layer; None where there are no ranks."""
    part: Shard | None = vars(layer).get(SHARD)
    return part


def is_held(layer: nn.Module) -> bool:
    """Whether this process holds anything of a layer: all of it where there are no ranks."""
    part = shard_of(layer)
    return part is None or part.held


def attention_output(layer: nn.Module, family: Family, hidden: Tensor, inputs: LayerInputs) -> Tensor:
    """A(x): the attention branch of a layer, norms included, residual excluded.

    Args:
        hidden: x, the stage's input, (B, T, D).

    Returns:
        (B, T, D), the dtype of `hidden`. Writes the layer's own entry of the cache in `inputs`, if any.
    """
    branch = family.attention
    hidden = _through(layer, branch.before, hidden)  # (B, T, D)
    output = layer.get_submodule(branch.module)(hidden_states=hidden, **inputs)
    return _through(layer, branch.after, output[0])  # (B, T, D)


def ffn_output(layer: nn.Module, family: Family, hidden: Tensor) -> Tensor:
    """F(x): the FFN branch of a layer, norms included, residual excluded. (B, T, D) to (B, T, D)."""
    branch = family.ffn
    hidden = _through(layer, branch.before, hidden)
    hidden = layer.get_submodule(branch.module)(hidden)
    return _through(layer, branch.after, hidden)


def run_group(
    layers: Sequence[nn.Module],
    inputs: Sequence[LayerInputs],
    family: Family,
    form: Form,
    hidden: Tensor,
) -> Tensor:
    """Several layers side by side on the same input x.

    lp (arXiv 2502.02790):  u = x + sum A_i(x);  y = u + sum F_i(u)
    par:                    y = x + sum [A_i(x) + F_i(x + A_i(x))]

    Where ranks share the model, each computes the terms of the layers that it holds a part of, and each sum goes over
    all ranks.

    Args:
        layers: the group's layers.
        inputs: what each of them is given besides the hidden states.
        hidden: x, (B, T, D).

    Returns:
        y, (B, T, D).
    """
    part = shard_of(layers[0])
    add = _add if part is None else part.add
    held = [(layer, given) for layer, given in zip(layers, inputs, strict=True) if is_held(layer)]
    attended = [attention_output(layer, family, hidden, given) for layer, given in held]
    if form == "lp":
        hidden = add(hidden, attended)  # u, (B, T, D)
        return add(hidden, [ffn_output(layer, family, hidden) for layer, _ in held])
    branches = [
        output + ffn_output(layer, family, hidden + output) for (layer, _), output in zip(held, attended, strict=True)
    ]
    return add(hidden, branches)


def _add(hidden: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    for output in outputs:
        hidden = hidden + output
    return hidden


def _through(layer: nn.Module, names: Sequence[str], hidden: Tensor) -> Tensor:
    for name in names:
        hidden = layer.get_submodule(name)(hidden)
    return hidden


def to_logits(model: PreTrainedModel, family: Family, hidden: Tensor, head: nn.Module | None = None) -> Tensor:
    """Final norm and LM head, with the soft cap of the families that have one.

    Args:
        hidden: output of the last stage, (..., D).
        head: in place of the model's own head.

    Returns:
        (..., V).
    """
    hidden = model.get_submodule(family.final_norm)(hidden)
    logits: Tensor = (model.get_submodule(family.head) if head is None else head)(hidden)
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)
