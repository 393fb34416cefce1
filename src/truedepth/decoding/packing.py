"""Linear layers of a CPU model with their weights laid out once for oneDNN, instead of at every call.

`F.linear` lays the weights out anew for each call with more than one row, which costs more than the product. While a
model is packed, each weight exists in the packed layout only; `unpack` puts the same numbers back.

Three more things make a step faster, and change no number but by rounding:

- Projections of the same input (q, k and v; gate and up) are one product. The first of them to be called computes all.
- Fewer rows than `LEAST_ROWS` are filled up to it: oneDNN's kernels for one to three rows are slower than for four.
- A table that is both embedding and LM head is packed in blocks, and a token's row is unpacked from its block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from truedepth.errors import TruedepthError, UsageError
from truedepth.families import Family

LEAST_ROWS = 4

_BLOCK = 1024
"""Rows of a block of a table that is also the embedding."""

_TYPICAL_ROWS = 8
"""What oneDNN is told to lay weights out for; with 1 it picks a layout that is slower for all."""


_HOLLOW = float("nan")
"""What a packed weight's parameter reads as, so that nobody takes it for the weight."""


def pack_linear(linear: nn.Linear) -> nn.Linear:
    """Pack a linear module that no model owns, where this machine can; returns it."""
    if can_pack(linear.weight.device, linear.weight.dtype):
        with torch.no_grad():
            _Together([linear])
    return linear


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN takes weights of this kind on this machine."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


class Packing:
    """A model whose linear layers are packed, until `unpack`."""

    def __init__(self, model: PreTrainedModel, family: Family) -> None:
        if any(is_hollow(parameter) for parameter in model.parameters()):
            raise UsageError("the model is open in another Engine; close that one first")
        self._guard = model.register_state_dict_pre_hook(_refuse_saving)
        self._packed: list[_Together | _Table] = []
        self._family = family
        self.add(family.decoder_layers(model))
        head, embedding = model.get_submodule(family.head), model.get_submodule(family.embedding)
        if isinstance(head, nn.Linear) and isinstance(embedding, nn.Embedding):
            tied = head.weight is embedding.weight
            with torch.inference_mode(False), torch.no_grad():
                self._head = _Table(head, embedding) if tied else _Together([head])
            self._packed.append(self._head)

    def add(self, modules: Iterable[nn.Module]) -> None:
        """Pack the linear modules in some modules too, such as further decoder layers; not those packed already."""
        with torch.inference_mode(False), torch.no_grad():  # the weights come back as tensors that can be trained
            for module in modules:
                for members in _products_of(module, self._family):
                    if not is_hollow(members[0].weight):
                        self._packed.append(_Together(members))

    def head_rows(self, ids: Tensor) -> Tensor:
        """Some rows of the LM head's weight: (V',), int64, to (V', D)."""
        return self._head.rows(ids)

    def unpack(self) -> None:
        """Put every weight back, bit for bit."""
        with torch.inference_mode(False), torch.no_grad():
            while self._packed:
                self._packed.pop().unpack()
        self._guard.remove()


def _products_of(layer: nn.Module, family: Family) -> Iterator[list[nn.Linear]]:
    """The linear modules of a layer, those of the same input together."""
    linears = {name: module for name, module in layer.named_modules() if type(module) is nn.Linear}
    for names in family.same_input:
        if all(name in linears for name in names):
            together = [linears.pop(name) for name in names]
            if len({member.bias is None for member in together}) == 1:
                yield together
            else:
                yield from ([member] for member in together)
    yield from ([module] for module in linears.values())


def _refuse_saving(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    raise TruedepthError("the model's weights are packed for decoding; close its Engine before saving or copying it")


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _TYPICAL_ROWS)
    return packed


def _product(rows: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """rows @ weight.T + bias: (M, K) to (M, N)."""
    count = rows.shape[0]
    if count == 1:
        rows = rows.expand(LEAST_ROWS, -1)  # cheaper than padding, and as good
    elif count < LEAST_ROWS:
        rows = nn.functional.pad(rows, (0, 0, 0, LEAST_ROWS - count))
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    return product[:count]


def _hollow_out(parameter: Tensor) -> None:
    """Free a parameter's memory, keeping its shape."""
    parameter.data = torch.full((1,), _HOLLOW, dtype=parameter.dtype).expand(parameter.shape)


def is_hollow(parameter: Tensor) -> bool:
    """Whether a parameter's numbers are in the packed layout only."""
    return parameter.dim() == 2 and parameter.numel() > 1 and parameter.stride() == (0, 0)


class _Together:
    """Linear modules that are given the same input, as one product."""

    def __init__(self, members: list[nn.Linear]) -> None:
        self.members = members
        self.sizes = [member.out_features for member in members]
        weights = tuple(member.weight for member in members)
        self.packed = _pack(torch.cat(weights) if weights[1:] else weights[0])
        biases = tuple(member.bias for member in members if member.bias is not None)
        self.bias = torch.cat(biases).detach() if biases else None
        self._given: Tensor | None = None
        self._outputs: dict[int, Tensor] = {}
        for index, member in enumerate(members):
            _hollow_out(member.weight)
            vars(member)["forward"] = partial(self._forward, index)

    def _forward(self, index: int, hidden: Tensor) -> Tensor:
        """(..., K) to (..., N): the output of one member."""
        if self._given is not hidden or index not in self._outputs:
            flat = _product(hidden.reshape(-1, hidden.shape[-1]), self.packed, self.bias)
            joint = flat.view(*hidden.shape[:-1], flat.shape[-1])
            self._outputs = dict(enumerate(joint.split(self.sizes, dim=-1)))
            self._given = hidden  # held, so that no other tensor can be taken for it
        output = self._outputs.pop(index)
        if not self._outputs:
            self._given = None
        return output

    def rows(self, ids: Tensor) -> Tensor:
        dense: Tensor = self.packed.to_dense()
        return dense[ids]

    def unpack(self) -> None:
        dense = self.packed.to_dense()
        for member, weight in zip(self.members, dense.split(self.sizes), strict=True):
            member.weight.data = weight.clone() if self.members[1:] else weight
            del vars(member)["forward"]


class _Table:
    """An embedding that is the LM head too, packed in blocks of rows."""

    def __init__(self, head: nn.Linear, embedding: nn.Embedding) -> None:
        self.head, self.embedding = head, embedding
        self.bias = head.bias
        self.blocks = [_pack(block) for block in head.weight.split(_BLOCK)]
        _hollow_out(head.weight)
        # It matters to gradients only, and must lie within the table, which is now that of a few tokens.
        self.padding, embedding.padding_idx = embedding.padding_idx, None
        vars(head)["forward"] = self._logits
        vars(embedding)["forward"] = self._embed

    def _logits(self, hidden: Tensor) -> Tensor:
        """(..., D) to (..., V)."""
        rows = hidden.reshape(-1, hidden.shape[-1])
        logits = torch.cat([_product(rows, block, None) for block in self.blocks], dim=-1)
        if self.bias is not None:
            logits += self.bias
        return logits.view(*hidden.shape[:-1], -1)

    def _embed(self, ids: Tensor) -> Tensor:
        """(...) to (..., D), by the embedding's own forward over the rows that are asked for."""
        wanted, places = ids.unique(return_inverse=True)
        table = self.embedding.weight
        hollow = table.data
        table.data = self.rows(wanted)
        try:
            return type(self.embedding).forward(self.embedding, places)
        finally:
            table.data = hollow

    def rows(self, ids: Tensor) -> Tensor:
        """(n,), int64, to (n, D)."""
        found = self.blocks[0].new_empty(len(ids), self.head.in_features, layout=torch.strided)
        blocks = ids // _BLOCK
        for block in blocks.unique().tolist():
            here = blocks == block
            found[here] = self.blocks[block].to_dense()[ids[here] - block * _BLOCK]
        return found

    def unpack(self) -> None:
        self.embedding.padding_idx = self.padding
        self.head.weight.data = torch.cat([block.to_dense() for block in self.blocks])
        del vars(self.head)["forward"], vars(self.embedding)["forward"]
