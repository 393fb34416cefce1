"""A parameter whose numbers are in a packed layout only. Whoever reads it gets them, from a copy made for the occasion.

The model's own forward never reads it, since the modules that own packed weights are computed from the layout. Others
may: a hook, an adapter put on while the model is packed, a module that multiplies with another module's weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from truedepth.errors import TruedepthError

Dense = Callable[[], Tensor]
"""What makes a dense copy of a parameter's numbers."""

_PLACEHOLDER = float("nan")
"""What the memory in place of the numbers holds, so that nobody takes it for them."""

_GETTERS = ("shape", "dtype", "device", "layout", "ndim", "requires_grad", "is_leaf", "grad", "grad_fn")
_FLAGS = ("is_cuda", "is_cpu", "is_meta", "is_sparse", "is_quantized", "is_mkldnn", "is_nested", "nbytes", "itemsize")
_METHODS = ("size", "dim", "numel", "element_size", "is_floating_point", "is_complex", "is_inference", "new_empty")
_OF_THE_OBJECT = ("untyped_storage", "data_ptr", "requires_grad_", "get_device")

_WITHOUT_NUMBERS = {
    *(getattr(Tensor, name).__get__ for name in (*_GETTERS, *_FLAGS)),
    *(getattr(Tensor, name) for name in (*_METHODS, *_OF_THE_OBJECT)),
    *(Tensor.requires_grad.__set__, Tensor.grad.__set__),  # type: ignore[attr-defined,union-attr]
}
"""What is answered without the numbers."""

_ALIASES = {Tensor.data.__get__, Tensor.detach}  # type: ignore[attr-defined]
"""What gives the same numbers as another tensor."""


class FreedParameter(nn.Parameter):
    """What `free` makes of a parameter, until `give_back`."""

    dense: Dense

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func in _WITHOUT_NUMBERS:
                return func(*args, **kwargs)
            if func in _ALIASES:
                return _freed(torch.Tensor.detach(args[0]), args[0].dense)
            if isinstance(kwargs.get("out"), cls) or (args and isinstance(args[0], cls) and _writes(func)):
                _refuse()
            args, kwargs = tree_map_only(cls, lambda parameter: parameter.dense(), (args, kwargs))
            return func(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        _refuse()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        _refuse()


def free(parameter: nn.Parameter, dense: Dense) -> None:
    """Free a parameter's memory, keeping its shape, its type and what else it is."""
    parameter.data = torch.full((1,), _PLACEHOLDER, dtype=parameter.dtype).expand(parameter.shape)
    _freed(parameter, dense)


def give_back(parameter: nn.Parameter, numbers: Tensor) -> None:
    """Make a freed parameter an ordinary one again, with these numbers."""
    del vars(parameter)["dense"]
    parameter.__class__ = nn.Parameter
    parameter.data = numbers


def is_freed(parameter: Tensor) -> bool:
    """Whether a parameter's numbers are in the packed layout only."""
    return isinstance(parameter, FreedParameter)


def _freed(tensor: Any, dense: Dense) -> FreedParameter:
    tensor.__class__ = FreedParameter
    tensor.dense = dense
    freed: FreedParameter = tensor
    return freed


def _writes(func: Any) -> bool:
    """Whether a function of tensors changes its first argument."""
    name: str = func.__name__
    return (
        name in ("__set__", "__setitem__")
        or (name.startswith("__i") and name.endswith("__") and name not in ("__invert__", "__index__", "__int__"))
        or (name.endswith("_") and not name.endswith("__"))
    )


def _refuse() -> NoReturn:
    raise TruedepthError(
        "the model's weights are packed for decoding; close its Engine before changing, saving or copying them"
    )
