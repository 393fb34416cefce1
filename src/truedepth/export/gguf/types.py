"""The types in which a GGUF file may hold a matrix, and how its values become their bytes.

Vectors (gains, biases, rotary factors) are always float32: they take no room, and llama.cpp computes with them as
they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from truedepth.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGMLQuantizationType
    from numpy.typing import NDArray
    from torch import Tensor

TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
"""What gguf-py writes of the types that suit any model. It also writes ternary and 4-bit float ones, made for
models that were trained in them."""

_COARSE = ("q5_1", "q5_0", "q4_1", "q4_0")
_CHUNK = 1 << 22
"""Values encoded at once: gguf-py takes several copies of them in float32."""


@dataclass(frozen=True, slots=True)
class Stored:
    """How one tensor is stored.

    Attributes:
        kind: its ggml type.
        shape: in values, slowest dimension first.
        byte_shape: of the array of bytes (or of numbers, for f32 and f16) that holds it.
        dtype: of that array.
    """

    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    byte_shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes in the file, without padding."""
        import math

        return math.prod(self.byte_shape) * self.dtype.itemsize


def require_type(name: str) -> str:
    """The name of a type that can be written, in lower case.

    Raises:
        UsageError: it cannot; the message says which can, and how llama.cpp makes the others.
    """
    if name.lower() in TYPES:
        return name.lower()
    raise UsageError(
        f"gguf-py cannot write the type '{name}'; choose one of {', '.join(TYPES)}, or export f16 and run llama.cpp's "
        f"own quantiser on the file: llama-quantize FILE.gguf SMALLER.gguf {name.upper()}"
    )


def file_type(name: str) -> int:
    """The number under `general.file_type`."""
    import gguf

    prefix = "ALL_" if name == "f32" else "MOSTLY_"
    return int(gguf.LlamaFileType[prefix + name.upper()])


def stored_as(name: str, shape: tuple[int, ...], *, head: bool) -> Stored:
    """How a tensor of some shape is stored in a file of type `name`.

    Args:
        head: whether logits are computed from it. Like llama.cpp's quantiser, which takes Q6_K for it, the coarse
            types keep it finer: as q8_0, the next type that gguf-py writes.

    Rows that are no whole number of blocks become f16, as in llama.cpp's converter.
    """
    import gguf
    import numpy as np

    kinds = gguf.GGMLQuantizationType
    kind = kinds.F32 if len(shape) < 2 else kinds[("q8_0" if head and name in _COARSE else name).upper()]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    if shape and shape[-1] % block:
        kind, block = kinds.F16, 1
    if kind in (kinds.F32, kinds.F16):
        return Stored(kind, shape, shape, np.dtype(np.float32 if kind == kinds.F32 else np.float16))
    return Stored(kind, shape, (*shape[:-1], shape[-1] // block * size), np.dtype(np.uint8))


def encode(name: str, tensor: Tensor, stored: Stored) -> NDArray[Any]:
    """A tensor's values as they stand in the file, some rows at a time.

    Raises:
        UsageError: float16 has no room for its values.
    """
    import gguf
    import numpy as np
    import torch

    if stored.kind == gguf.GGMLQuantizationType.F32 and tensor.dtype == torch.float32:
        return np.ascontiguousarray(tensor.detach().numpy())
    out: NDArray[Any] = np.empty(stored.byte_shape, stored.dtype)
    if out.ndim == 0 or not out.size:
        return out
    rows = max(1, _CHUNK * len(out) // tensor.numel())
    for start in range(0, len(out), rows):
        values = tensor[start : start + rows].detach().float().numpy()
        if stored.kind == gguf.GGMLQuantizationType.F16 and np.abs(values).max() > np.finfo(np.float16).max:
            raise UsageError(
                f"tensor '{name}' has values up to {np.abs(values).max():.3g}, more than float16 holds; "
                "use the type bf16 or f32"
            )
        out[start : start + rows] = gguf.quants.quantize(np.ascontiguousarray(values), stored.kind)
    return out
