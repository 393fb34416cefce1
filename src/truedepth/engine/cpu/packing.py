"""A CPU model made ready for decoding: its weights in a layout for fast products, its norms and activations by kernels.

While a model is packed, each weight exists in its layout only; `unpack` puts the same numbers back. Projections of the
same input (q, k and v; gate and up) are one product: the first of them to be called computes all. No number changes but
by rounding.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from truedepth.engine.cpu.layouts import can_lay_out, lay_out
from truedepth.engine.cpu.quick import Quick, quick_forward
from truedepth.errors import TruedepthError, UsageError
from truedepth.families import Family

_FREED = float("nan")
"""What a packed weight's parameter reads as, so that nobody takes it for the weight."""


def pack_linear(linear: nn.Linear) -> nn.Linear:
    """Pack a linear module that no model owns, where this machine can; returns it."""
    if can_lay_out(linear.weight.device, linear.weight.dtype):
        with torch.no_grad():
            _Together([linear])
    return linear


def copy_norm(norm: nn.Module) -> nn.Module:
    """A copy of a norm as it came, whether or not its model is packed."""
    quick = vars(norm).pop("forward", None)
    try:
        return copy.deepcopy(norm)
    finally:
        if quick is not None:
            vars(norm)["forward"] = quick


class Packing:
    """A model whose linear layers are packed, until `unpack`."""

    def __init__(self, model: PreTrainedModel, family: Family) -> None:
        if any(is_freed(parameter) for parameter in model.parameters()):
            raise UsageError("the model is open in another Engine; close that one first")
        self._guard = model.register_state_dict_pre_hook(_refuse_saving)
        self._packed: list[_Together | _Table | Quick] = []
        self._family, self._dtype = family, model.dtype
        self.add([*family.decoder_layers(model), model.get_submodule(family.final_norm)])
        head, embedding = model.get_submodule(family.head), model.get_submodule(family.embedding)
        if isinstance(head, nn.Linear) and isinstance(embedding, nn.Embedding):
            tied = head.weight is embedding.weight
            with torch.inference_mode(False), torch.no_grad():
                self._head = _Table(head, embedding) if tied else _Together([head])
            self._packed.append(self._head)
        _give_back_freed_memory()

    def add(self, modules: Iterable[nn.Module]) -> None:
        """Pack some modules too, such as further decoder layers: what in them is linear or a norm, once."""
        with torch.inference_mode(False), torch.no_grad():  # the weights come back as tensors that can be trained
            for module in modules:
                for members in _products_of(module, self._family):
                    if not is_freed(members[0].weight):
                        self._packed.append(_Together(members))
                for part in module.modules():
                    if quick := quick_forward(part, self._dtype):
                        self._packed.append(Quick(part, quick))

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


def _give_back_freed_memory() -> None:
    """Have glibc hand the memory of the old layout to the system: by itself it keeps a fifth of the weights' size."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library: nothing to do
        ctypes.CDLL(None).malloc_trim(0)


def _refuse_saving(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    raise TruedepthError("the model's weights are packed for decoding; close its Engine before saving or copying it")


def _free(parameter: Tensor) -> None:
    """Free a parameter's memory, keeping its shape."""
    parameter.data = torch.full((1,), _FREED, dtype=parameter.dtype).expand(parameter.shape)


def is_freed(parameter: Tensor) -> bool:
    """Whether a parameter's numbers are in the packed layout only."""
    return parameter.dim() == 2 and parameter.numel() > 1 and parameter.stride() == (0, 0)


class _Together:
    """Linear modules that are given the same input, as one product."""

    def __init__(self, members: list[nn.Linear]) -> None:
        self.members = members
        self.sizes = [member.out_features for member in members]
        weights = tuple(member.weight.detach() for member in members)
        biases = tuple(member.bias.detach() for member in members if member.bias is not None)
        self.layout = lay_out(torch.cat(weights) if weights[1:] else weights[0], torch.cat(biases) if biases else None)
        self._given: Tensor | None = None
        self._outputs: dict[int, Tensor] = {}
        for index, member in enumerate(members):
            _free(member.weight)
            vars(member)["forward"] = partial(self._forward, index) if members[1:] else self.layout.product

    def _forward(self, index: int, hidden: Tensor) -> Tensor:
        """(..., K) to (..., N): the output of one member."""
        if self._given is not hidden or index not in self._outputs:
            joint = self.layout.product(hidden)
            self._outputs = dict(enumerate(joint.split_with_sizes(self.sizes, dim=-1)))
            self._given = hidden  # held, so that no other tensor can be taken for it
        output = self._outputs.pop(index)
        if not self._outputs:
            self._given = None
        return output

    def rows(self, ids: Tensor) -> Tensor:
        return self.layout.rows(ids)

    def unpack(self) -> None:
        dense = self.layout.dense()
        for member, weight in zip(self.members, dense.split(self.sizes), strict=True):
            member.weight.data = weight.clone() if self.members[1:] else weight
            del vars(member)["forward"]


class _Table:
    """An embedding that is the LM head too."""

    def __init__(self, head: nn.Linear, embedding: nn.Embedding) -> None:
        self.head, self.embedding = head, embedding
        bias = None if head.bias is None else head.bias.detach()
        self.layout = lay_out(head.weight.detach(), bias, by_row=True)
        _free(head.weight)
        # It matters to gradients only, and must lie within the table, which is now that of a few tokens.
        self.padding, embedding.padding_idx = embedding.padding_idx, None
        vars(head)["forward"] = self.layout.product
        vars(embedding)["forward"] = self._embed

    def _embed(self, ids: Tensor) -> Tensor:
        """(...) to (..., D), by the embedding's own forward over the rows that are asked for."""
        table = self.embedding.weight
        freed = table.data
        table.data = self.rows(ids.flatten())
        try:
            positions = torch.arange(ids.numel()).view(ids.shape)
            return type(self.embedding).forward(self.embedding, positions)
        finally:
            table.data = freed

    def rows(self, ids: Tensor) -> Tensor:
        """(n,), int64, to (n, D)."""
        return self.layout.rows(ids)

    def unpack(self) -> None:
        self.embedding.padding_idx = self.padding
        self.head.weight.data = self.layout.dense()
        del vars(self.head)["forward"], vars(self.embedding)["forward"]
