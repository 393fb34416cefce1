"""Products, norms and attention for few tokens on a CPU, in C.

The C files beside this one are compiled by the machine's own C compiler when they are first needed, which takes some
seconds, and kept in the user's cache. They read weights as fast as the memory gives them, which PyTorch's own products
do not for one to six rows (`docs/decoding.md` has the figures). Without a compiler, decoding works with PyTorch's.

Tensors are float32 or bfloat16, and all that one call is given are the same. Sums are float32, in one order however
many tokens are computed together: the kernels are *batch-invariant*.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import warnings
from ctypes import c_float, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from pathlib import Path

import torch
from platformdirs import user_cache_path
from torch import Tensor

_SOURCES = sorted(Path(__file__).parent.glob("*.[ch]"))

_COMPILER = ("cc", "gcc", "clang")
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-std=gnu11", "-pthread")

DTYPES: dict[torch.dtype, int] = {torch.float32: 0, torch.bfloat16: 1}
"""The dtypes that the kernels take, and their numbers in C."""

PAIRED: dict[torch.dtype, int] = {torch.float32: 1, torch.bfloat16: 2}
"""How many inputs' weights stand side by side in a panel."""

ACTIVATIONS = ("silu", "gelu_tanh")
"""What `activate` computes, in the order of its numbers in C."""


class Kernels:
    """The compiled functions.

    Attributes:
        panel: outputs of a product whose weights are interleaved.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, size = c_void_p, c_size_t
        self._product, self._normalise, self._activate = library.product, library.normalise, library.activate
        self._attend, self._store = library.attend, library.store
        self._product.argtypes = [c_int, *[pointer] * 4, size, size, size, c_int]
        self._normalise.argtypes = [c_int, *[pointer] * 3, size, size, c_float, c_int]
        self._activate.argtypes = [c_int, c_int, pointer, pointer, size, c_int]
        self._attend.argtypes = [c_int, *[pointer] * 8, c_float, c_float, c_int]
        self._store.argtypes = [c_int, *[pointer] * 5]
        for function in (self._product, self._normalise, self._activate, self._attend, self._store):
            function.restype = None
        self.panel: int = library.panel()

    def product(self, hidden: Tensor, panels: Tensor, bias: Tensor | None) -> Tensor:
        """hidden @ weight.T + bias.

        Args:
            hidden: (..., K), K even for bfloat16.
            panels: the weight, `panel` of its rows interleaved, contiguous: (P, K / n, panel, n), with n from `PAIRED`.
            bias: (P * panel,), or None.

        Returns:
            (..., P * panel), the same dtype.

        Raises:
            TypeError: the input's dtype is not the weight's.
        """
        if hidden.dtype != panels.dtype:
            raise TypeError(f"an input of {hidden.dtype} is multiplied with a weight of {panels.dtype}")
        hidden = hidden.contiguous()
        count, size = panels.shape[0], hidden.shape[-1]
        output = hidden.new_empty(*hidden.shape[:-1], count * self.panel)  # (..., P * panel)
        self._product(
            DTYPES[hidden.dtype],
            hidden.data_ptr(),
            panels.data_ptr(),
            None if bias is None else bias.data_ptr(),
            output.data_ptr(),
            hidden.numel() // size,
            size,
            count,
            torch.get_num_threads(),
        )
        return output

    def normalise(self, hidden: Tensor, gain: Tensor, epsilon: float) -> Tensor:
        """gain * hidden / sqrt(mean(hidden^2) + epsilon) over the last dimension, rounded once.

        Args:
            hidden: (..., D).
            gain: (D,), float32, contiguous.

        Returns:
            (..., D), the dtype of `hidden`.
        """
        hidden = hidden.contiguous()
        output = torch.empty_like(hidden)
        size = hidden.shape[-1]
        self._normalise(
            DTYPES[hidden.dtype],
            hidden.data_ptr(),
            gain.data_ptr(),
            output.data_ptr(),
            hidden.numel() // size,
            size,
            epsilon,
            torch.get_num_threads(),
        )
        return output

    def activate(self, function: str, hidden: Tensor) -> Tensor:
        """One of `ACTIVATIONS`, number by number: any shape to the same."""
        hidden = hidden.contiguous()
        output = torch.empty_like(hidden)
        self._activate(
            DTYPES[hidden.dtype],
            ACTIVATIONS.index(function),
            hidden.data_ptr(),
            output.data_ptr(),
            hidden.numel(),
            torch.get_num_threads(),
        )
        return output

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, cap: float | None = None
    ) -> Tensor:
        """softmax(q k^T * scale + mask) v for each query head over the keys of its group.

        Args:
            query: (B, Hq, T, d), d a multiple of 16; like the others, its last dimension is dense.
            key, value: (B, Hkv, S, d).
            mask: (B or 1, 1, T, S), contiguous; None: every token sees all S.
            cap: bounds the scores to cap * tanh(score / cap), before the mask.

        Returns:
            (B, T, Hq, d), the same dtype.
        """
        batch, heads, tokens, size = query.shape
        kv_heads, span = key.shape[1], key.shape[2]
        output = query.new_empty(batch, tokens, heads, size)
        scores = query.new_empty(batch * heads * tokens * (span + self.panel), dtype=torch.float32)
        mask_row = tokens * span if mask is not None and mask.shape[0] > 1 else 0
        self._attend(
            DTYPES[query.dtype],
            query.data_ptr(),
            key.data_ptr(),
            value.data_ptr(),
            None if mask is None else mask.data_ptr(),
            scores.data_ptr(),
            output.data_ptr(),
            (c_int64 * 6)(batch, heads, kv_heads, tokens, span, size),
            (c_int64 * 10)(*query.stride()[:3], *key.stride()[:3], *value.stride()[:3], mask_row),
            scale,
            cap or 0.0,
            torch.get_num_threads(),
        )
        return output

    def store(self, held: Tensor, new: Tensor, slots: Tensor) -> None:
        """Put cache entries into their slots.

        Args:
            held: (rows, capacity, H, d), contiguous.
            new: (B, H, T, d), its last dimension dense.
            slots: row * capacity + position of each token, (B * T,), int64, contiguous.
        """
        self._store(
            DTYPES[new.dtype],
            held.data_ptr(),
            new.data_ptr(),
            slots.data_ptr(),
            (c_int64 * 4)(*new.shape),
            (c_int64 * 3)(*new.stride()[:3]),
        )


def kernels_for(like: Tensor) -> Kernels | None:
    """The compiled kernels, if they take tensors of this dtype and device."""
    return kernels() if like.dtype in DTYPES and like.device.type == "cpu" else None


@cache
def kernels() -> Kernels | None:
    """The compiled kernels; None, with a warning, where they cannot be compiled."""
    try:
        return Kernels(ctypes.CDLL(str(_built())))
    except (OSError, subprocess.SubprocessError) as error:
        said = error.stderr.decode(errors="replace").strip() if isinstance(error, subprocess.CalledProcessError) else ""
        warnings.warn(
            "decoding on this CPU will be slower than it could be, for its kernels cannot be compiled: "
            f"{said or error}; install gcc",
            stacklevel=2,
        )
        return None


def _built() -> Path:
    """The compiled library, made unless it is there already."""
    compiler = next(filter(None, map(shutil.which, _COMPILER)), None)
    if compiler is None:
        raise OSError("there is no C compiler")
    source = b"".join(path.read_bytes() for path in _SOURCES)
    # What the compiler makes of this machine: a cache may be shared by several.
    target = _run(compiler, *_FLAGS, "-dM", "-E", "-x", "c", os.devnull)
    key = hashlib.sha256(source + target + " ".join(_FLAGS).encode()).hexdigest()[:20]
    folder = user_cache_path("truedepth") / "kernels"
    built = folder / f"{key}.so"
    if not built.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            linked = Path(aside) / "kernels.so"
            parts = [str(path) for path in _SOURCES if path.suffix == ".c"]
            _run(compiler, *_FLAGS, "-shared", *parts, "-lm", "-o", str(linked))
            linked.replace(built)
    return built


def _run(*command: str) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout
