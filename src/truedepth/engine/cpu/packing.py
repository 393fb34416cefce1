"""A CPU model made ready for decoding: its weights in a layout for fast products, its norms and activations by kernels.

While a model is packed, each weight exists in its layout only; `unpack` puts the same numbers back. Projections of the
same input (q, k and v; gate and up) are one product: the first of them to be called computes all. No number changes but
by rounding. A module whose weight something else may change or read, such as an adapter around it, stays as it is.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from truedepth.engine.cpu.forwards import Forward, ReplacedForwards
from truedepth.engine.cpu.freed import free, give_back, is_freed
from truedepth.engine.cpu.layouts import Layout, can_lay_out, lay_out
from truedepth.engine.cpu.quick import Quick, quick_forward
from truedepth.errors import TruedepthError, UsageError
from truedepth.families import Family
from truedepth.models.adapters import calls_its_linears
from truedepth.models.private_transformers import hooks_before, is_compiled


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
        self._model, self._others = model, list[nn.Module]()
        self._owners = Counter(id(held) for part in model.modules() for held in part.parameters(recurse=False))
        self._family, self._dtype = family, model.dtype
        self._head: _Together | _Table | None = None
        if not any(map(is_compiled, (model, model.base_model))):
            *parts, head, embedding = self._own()
            self._pack(parts)
            self._head = self._pack_head(head, embedding)
        _give_back_freed_memory()

    def _pack_head(self, head: nn.Module, embedding: nn.Module) -> _Together | _Table | None:
        """Pack the LM head, which may be the embedding too. A head with an adapter, say, stays as it is: None."""
        packed: _Together | _Table
        with torch.inference_mode(False), torch.no_grad():
            if self._is_plain(head):
                packed = _Together([head])
            elif self._is_plain(head, owners=2) and _is_tied(embedding, head):
                packed = _Table(head, embedding)
            else:
                return None
        self._packed.append(packed)
        return packed

    def _own(self) -> list[nn.Module]:
        """The model's layers, final norm, LM head and embedding, or what stands around them by now."""
        family, model = self._family, self._model
        around = [model.get_submodule(name) for name in (family.final_norm, family.head, family.embedding)]
        return [*family.decoder_layers(model), *around]

    def add(self, modules: Sequence[nn.Module]) -> None:
        """Pack some modules too, such as further decoder layers: what in them is linear or a norm, once."""
        self._others += modules
        self._pack(modules)

    def _pack(self, modules: Sequence[nn.Module]) -> None:
        with torch.inference_mode(False), torch.no_grad():  # the weights come back as tensors that can be trained
            for module in modules:
                parts = dict(_named_parts(module))
                linears = {name: part for name, part in parts.items() if self._is_plain(part)}
                self._packed += map(_Together, _products_of(linears, self._family))
                for part in parts.values():
                    if not hooks_before(part) and (quick := quick_forward(part, self._dtype)):
                        self._packed.append(Quick(part, quick))

    def _is_plain(self, module: nn.Module, owners: int = 1) -> TypeGuard[nn.Linear]:
        """Whether a module is linear, computes just that, and shares its weight with so many modules in all."""
        return type(module) is nn.Linear and _owns_its_weight(module) and self._owners[id(module.weight)] <= owners

    def head_rows(self, ids: Tensor) -> Tensor:
        """Some rows of the LM head's weight: (V',), int64, to (V', D)."""
        if self._head in self._packed:
            return self._head.rows(ids)
        weight: Any = self._model.get_submodule(self._family.head).weight
        return cast(Tensor, weight[ids])

    def refresh(self) -> None:
        """Put back what has been changed since, or may now be read: by an adapter, say, that was put on."""
        parts = frozenset(id(part) for module in (*self._own(), *self._others) for _, part in _named_parts(module))
        changed = [packed for packed in self._packed if not packed.forwards.hold_within(parts)]
        self._packed = [packed for packed in self._packed if packed not in changed]
        _unpack(changed)

    def unpack(self) -> None:
        """Put every weight back, bit for bit."""
        _unpack(self._packed)
        self._packed = []
        self._guard.remove()


def _unpack(packed: Iterable[_Together | _Table | Quick]) -> None:
    with torch.inference_mode(False), torch.no_grad():
        for each in packed:
            each.unpack()


def _named_parts(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """A module and the modules inside of it, but for those whose weights may be read by the one around them.

    Compiled code reads the weights that it was compiled for.
    """
    yield name, module
    if calls_its_linears(module) and not is_compiled(module):
        for key, child in module.named_children():
            yield from _named_parts(child, f"{name}.{key}" if name else key)


def _owns_its_weight(module: nn.Module) -> bool:
    """Whether a module's weight is an ordinary parameter, and its forward that of its class."""
    weight = module._parameters.get("weight")  # none where it is computed, as by torch.nn.utils.parametrize
    return type(weight) is nn.Parameter and "forward" not in vars(module) and not hooks_before(module)


def _is_tied(embedding: nn.Module, head: nn.Linear) -> TypeGuard[nn.Embedding]:
    """Whether a module is an embedding whose table is the head's weight."""
    return isinstance(embedding, nn.Embedding) and _owns_its_weight(embedding) and embedding.weight is head.weight


def _products_of(linears: dict[str, nn.Linear], family: Family) -> Iterator[list[nn.Linear]]:
    """The linear modules of a layer by name, those of the same input together."""
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


class _Together:
    """Linear modules that are given the same input, as one product."""

    def __init__(self, members: list[nn.Linear]) -> None:
        self.sizes = [member.out_features for member in members]
        weights = tuple(member.weight.detach() for member in members)
        biases = tuple(member.bias.detach() for member in members if member.bias is not None)
        self.layout = lay_out(torch.cat(weights) if weights[1:] else weights[0], torch.cat(biases) if biases else None)
        self._given: Tensor | None = None
        self._outputs: dict[int, Tensor] = {}
        self.weights = [cast(nn.Parameter, member.weight) for member in members]
        for index, weight in enumerate(self.weights):
            free(weight, partial(_part, self.layout, self.sizes, index))
        products: list[Forward] = [self.layout.product]
        if members[1:]:
            products = [partial(self._forward, index) for index in range(len(members))]
        self.forwards = ReplacedForwards(*zip(members, products, strict=True))

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
        for weight, numbers in zip(self.weights, dense.split(self.sizes), strict=True):
            give_back(weight, numbers.clone() if self.weights[1:] else numbers)
        self.forwards.put_back()


def _part(layout: Layout, sizes: list[int], index: int) -> Tensor:
    """The weight of one of the modules in a layout, (N, K)."""
    start = sum(sizes[:index])
    return layout.dense()[start : start + sizes[index]]


class _Table:
    """An embedding that is the LM head too."""

    def __init__(self, head: nn.Linear, embedding: nn.Embedding) -> None:
        self.embedding = embedding
        bias = None if head.bias is None else head.bias.detach()
        self.layout = lay_out(head.weight.detach(), bias, by_row=True)
        self.weight = cast(nn.Parameter, head.weight)
        free(self.weight, self.layout.dense)
        # It matters to gradients only, and must lie within the table, which is now that of a few tokens.
        self.padding, embedding.padding_idx = embedding.padding_idx, None
        self.forwards = ReplacedForwards((head, self.layout.product), (embedding, self._embed))

    def _embed(self, ids: Tensor) -> Tensor:
        """(...) to (..., D), by the embedding's own forward over the rows that are asked for."""
        held = self.embedding._parameters
        held["weight"] = nn.Parameter(self.rows(ids.flatten()), requires_grad=False)
        try:
            positions = torch.arange(ids.numel()).view(ids.shape)
            return type(self.embedding).forward(self.embedding, positions)
        finally:
            held["weight"] = self.weight

    def rows(self, ids: Tensor) -> Tensor:
        """(n,), int64, to (n, D)."""
        return self.layout.rows(ids)

    def unpack(self) -> None:
        self.embedding.padding_idx = self.padding
        give_back(self.weight, self.layout.dense())
        self.forwards.put_back()
