"""A rank's part of a model: the model's own modules, with fewer heads, FFN columns and rows of the LM head.

Which projections of a layer are cut by rows and which by columns is what `transformers` says in the configuration's
tensor-parallel plan (`base_model_tp_plan`). A layer keeps its class, with `SplitLayer` in front of it, and runs as a
group of one in form lp (`truedepth.models.stages.run_group`), which sums over the ranks after each branch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from truedepth.errors import UnsupportedModelError
from truedepth.families import Family, family_of
from truedepth.models.stages import SHARD, run_group, shard_of
from truedepth.parallel.partition import Piece
from truedepth.parallel.ranks import Ranks

BY_ROWS, BY_COLUMNS = "colwise", "rowwise"
"""The styles of `transformers`' plans, named after the transposed matrix."""

WHOLE = "replicated_with_grad_allreduce"
"""The style of what every rank has whole, such as norms on each head."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a parameter of a split model comes from.

    Attributes:
        source: a parameter of the whole model.
        dim: the dimension of which it has the part from `start` to `stop`; None: all of it.
    """

    source: str
    dim: int | None = None
    start: int = 0
    stop: int = 0

    def of(self, tensor: Tensor) -> Tensor:
        """The part, as a view."""
        return tensor if self.dim is None else tensor.narrow(self.dim, self.start, self.stop - self.start)


class LayerShard:
    """What one rank holds of a decoder layer (`truedepth.models.stages.Part`)."""

    def __init__(self, ranks: Ranks, family: Family, *, held: bool) -> None:
        self.ranks, self.family, self.held = ranks, family, held

    def add(self, hidden: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """x plus all branches' outputs on all ranks, of which `outputs` are those of this one: one all-reduce."""
        total = functools.reduce(torch.add, outputs) if outputs else torch.zeros_like(hidden)
        return hidden + self.ranks.sum(total)  # (B, T, D)


class SplitLayer(nn.Module):
    """Mixed in front of a decoder layer's class by `split`."""

    def forward(self, hidden_states: Tensor, **inputs: Any) -> Tensor:
        """The single layer as a stage: (B, T, D) to (B, T, D), the same on all ranks."""
        part: LayerShard = vars(self)[SHARD]
        return run_group([self], [inputs], part.family, "lp", hidden_states)


@functools.cache
def _split_class(layer_class: type[nn.Module]) -> type[nn.Module]:
    return type(layer_class.__name__, (SplitLayer, layer_class), {})


def is_split(model: PreTrainedModel) -> bool:
    """Whether ranks share the model."""
    return shard_of(family_of(model.config).decoder_layers(model)[0]) is not None


def split(model: PreTrainedModel, pieces: Mapping[int, Piece], ranks: Ranks) -> dict[str, Cut]:
    """Leave of a model what one rank holds, in place: views, or nothing on the meta device.

    The embedding stays whole on every rank: a token reads one row of it, and cutting it would take another all-reduce
    a pass. The LM head, of which a token reads all, is cut by rows (the vocabulary), and its logits gathered.

    Args:
        pieces: of the layers, by number; see `truedepth.parallel.partition.pieces_of`.

    Returns:
        Where each of the parameters that are left comes from, by name.

    Raises:
        UnsupportedModelError: the family's layers cannot be cut.
    """
    family = family_of(model.config)
    family.require("split")
    plan: dict[str, str] = model.config.base_model_tp_plan or {}
    prefix = f"{family.layers.removeprefix('model.')}.*."
    styles = {name.removeprefix(prefix): style for name, style in plan.items() if name.startswith(prefix)}
    _require_known(family, styles)
    names = {id(parameter): name for name, parameter in model.named_parameters()}  # tied ones once
    cuts = {name: Cut(names[id(parameter)]) for name, parameter in model.named_parameters(remove_duplicate=False)}
    for index, layer in enumerate(family.decoder_layers(model)):
        own = f"{family.layers}.{index}"
        piece = pieces.get(index)
        if piece is None:
            for name, _ in list(layer.named_children()):
                delattr(layer, name)  # the layer keeps its position in the model's loop
        else:
            for name, style in styles.items():
                _cut_linear(layer.get_submodule(name), f"{own}.{name}", style, piece, cuts)
        vars(layer)[SHARD] = LayerShard(ranks, family, held=piece is not None)
        layer.__class__ = _split_class(type(layer))  # type: ignore[arg-type]  # mypy: a Module class is hashable
    _cut_head(model, family, cuts, ranks)
    left = dict(model.named_parameters(remove_duplicate=False))
    return {name: cut for name, cut in cuts.items() if name in left}


def _require_known(family: Family, styles: Mapping[str, str]) -> None:
    """Refuse a tensor-parallel plan of another kind: what is cut and summed here would be wrong."""
    unknown = {style for style in styles.values() if style not in (BY_ROWS, BY_COLUMNS, WHOLE)}
    if unknown or not {BY_ROWS, BY_COLUMNS} <= set(styles.values()):
        raise UnsupportedModelError(
            f"this transformers release shards family {family.name} by {sorted(set(styles.values()))}, which "
            f"truedepth cannot follow; use a release whose plan has '{BY_ROWS}' and '{BY_COLUMNS}', or one process"
        )


def _cut_linear(linear: Any, name: str, style: str, piece: Piece, cuts: dict[str, Cut]) -> None:
    """Keep a piece of a linear module's rows (its outputs) or columns (its inputs)."""
    if style == WHOLE:
        return
    dim = 0 if style == BY_ROWS else 1
    start, stop = piece.cut(linear.weight.shape[dim])
    _keep(linear, "weight", name, Cut(cuts[f"{name}.weight"].source, dim, start, stop), cuts)
    linear.out_features, linear.in_features = linear.weight.shape
    if linear.bias is None:
        return
    if style == BY_ROWS:
        _keep(linear, "bias", name, Cut(f"{name}.bias", 0, start, stop), cuts)
    elif piece.start > 0:
        linear.bias = None  # the sum over ranks has it once: from the rank with the layer's beginning


def _keep(module: nn.Module, parameter: str, name: str, cut: Cut, cuts: dict[str, Cut]) -> None:
    cuts[f"{name}.{parameter}"] = cut
    part = cut.of(module.get_parameter(parameter))
    module.register_parameter(parameter, nn.Parameter(part, requires_grad=False))


def _cut_head(model: PreTrainedModel, family: Family, cuts: dict[str, Cut], ranks: Ranks) -> None:
    """Keep a part of the LM head's rows, and gather the logits of all parts behind it."""
    head: Any = model.get_submodule(family.head)
    size = int(head.weight.shape[0])
    width = -(-size // ranks.size)
    first, end = (min(size, rank * width) for rank in (ranks.rank, ranks.rank + 1))
    rows = Cut(cuts[f"{family.head}.weight"].source, 0, first, end)
    _keep(head, "weight", family.head, rows, cuts)
    if head.bias is not None:
        _keep(head, "bias", family.head, Cut(f"{family.head}.bias", 0, rows.start, rows.stop), cuts)
    head.out_features = rows.stop - rows.start

    def gather(_: nn.Module, __: Any, logits: Tensor) -> Tensor:
        """(..., V / ranks) to (..., V)."""
        parts = ranks.gather(nn.functional.pad(logits, (0, width - logits.shape[-1])))  # (ranks, ..., width)
        return parts.movedim(0, -2).flatten(-2)[..., :size]

    head.register_forward_hook(gather)
