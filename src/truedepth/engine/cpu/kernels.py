"""Products, norms and attention for few tokens on a CPU, in C.

`kernels.c` is compiled by the machine's own C compiler when it is first needed, which takes about a second, and kept in
the user's cache. It reads weights as fast as the memory gives them, which PyTorch's own products do not for one to six
rows (`docs/decoding.md` has the figures). Without a compiler, decoding works with PyTorch's.

All is float32. The threads are PyTorch's own: the kernels call the OpenMP runtime that it has loaded.
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

_SOURCE = Path(__file__).with_name("kernels.c")

_COMPILER = ("cc", "gcc", "clang")
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-std=gnu11")


class Kernels:
    """The compiled functions.

    Attributes:
        panel: outputs of a product whose weights are interleaved.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, size = c_void_p, c_size_t
        self._product, self._normalise = library.product, library.normalise
        self._attend, self._store = library.attend, library.store
        self._product.argtypes = [pointer, pointer, pointer, pointer, size, size, size, c_int]
        self._normalise.argtypes = [pointer, pointer, pointer, size, size, c_float, c_int]
        self._attend.argtypes = [*[pointer] * 6, pointer, pointer, c_float, c_int]
        self._store.argtypes = [pointer] * 5
        for function in (self._product, self._normalise, self._attend, self._store):
            function.restype = None
        self.panel: int = library.panel()

    def product(self, hidden: Tensor, panels: Tensor, bias: Tensor | None) -> Tensor:
        """hidden @ weight.T + bias.

        Args:
            hidden: (..., K), float32.
            panels: the weight, `panel` of its rows interleaved, contiguous: (P, K, panel).
            bias: (P * panel,), or None.

        Returns:
            (..., P * panel), float32.
        """
        hidden = hidden.contiguous()
        count, size, _ = panels.shape
        output = hidden.new_empty(*hidden.shape[:-1], count * self.panel)  # (..., P * panel)
        self._product(
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
        """gain * hidden / sqrt(mean(hidden^2) + epsilon) over the last dimension: (..., D), float32, to the same."""
        hidden = hidden.contiguous()
        output = torch.empty_like(hidden)
        size = hidden.shape[-1]
        rows = hidden.numel() // size
        self._normalise(
            hidden.data_ptr(), gain.data_ptr(), output.data_ptr(), rows, size, epsilon, torch.get_num_threads()
        )
        return output

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        """softmax(q k^T * scale + mask) v for each query head over the keys of its group.

        Args:
            query: (B, Hq, T, d), float32, d a multiple of 16; like the others, its last dimension is dense.
            key, value: (B, Hkv, S, d).
            mask: (B or 1, 1, T, S), contiguous; None: every token sees all S.

        Returns:
            (B, T, Hq, d), float32.
        """
        batch, heads, tokens, size = query.shape
        kv_heads, span = key.shape[1], key.shape[2]
        output = query.new_empty(batch, tokens, heads, size)
        scores = query.new_empty(batch * heads * tokens * (span + self.panel))
        mask_row = tokens * span if mask is not None and mask.shape[0] > 1 else 0
        self._attend(
            query.data_ptr(),
            key.data_ptr(),
            value.data_ptr(),
            None if mask is None else mask.data_ptr(),
            scores.data_ptr(),
            output.data_ptr(),
            (c_int64 * 6)(batch, heads, kv_heads, tokens, span, size),
            (c_int64 * 10)(*query.stride()[:3], *key.stride()[:3], *value.stride()[:3], mask_row),
            scale,
            torch.get_num_threads(),
        )
        return output

    def store(self, held: Tensor, new: Tensor, slots: Tensor) -> None:
        """Put cache entries into their slots.

        Args:
            held: (rows, capacity, H, d), float32, contiguous.
            new: (B, H, T, d), its last dimension dense.
            slots: row * capacity + position of each token, (B * T,), int64, contiguous.
        """
        self._store(
            held.data_ptr(),
            new.data_ptr(),
            slots.data_ptr(),
            (c_int64 * 4)(*new.shape),
            (c_int64 * 3)(*new.stride()[:3]),
        )


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
    source = _SOURCE.read_bytes()
    # What the compiler makes of this machine: a cache may be shared by several.
    target = _run(compiler, *_FLAGS, "-dM", "-E", "-x", "c", os.devnull)
    key = hashlib.sha256(source + target + " ".join(_FLAGS).encode()).hexdigest()[:20]
    folder = user_cache_path("truedepth") / "kernels"
    built = folder / f"{key}.so"
    if not built.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            compiled, linked = Path(aside) / "kernels.o", Path(aside) / "kernels.so"
            _run(compiler, *_FLAGS, "-c", str(_SOURCE), "-o", str(compiled))
            # Linked without OpenMP: its functions are found in the runtime that PyTorch has loaded, so that there is
            # one pool of threads and not two that wait for each other.
            _run(compiler, "-shared", str(compiled), "-o", str(linked))
            linked.replace(built)
    return built


def _run(*command: str) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout
