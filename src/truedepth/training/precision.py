"""Whether a processor gains time by a precision: some have no arithmetic for it, and convert every number."""

from __future__ import annotations

import time
import warnings

import torch
from torch import Tensor
from torch.nn.functional import linear

_SIZE, _REPEATS = 512, 3
_TOO_SLOW = 1.25
"""Times the seconds of float32; less is noise."""


def warn_of_slow_precision(precision: str, device: torch.device) -> None:
    """Warn where products on a CPU take longer in `precision` than in float32.

    bfloat16 halves their time on processors that have AVX-512 BF16 or AMX; on those with AVX2 alone it takes many times
    as long.
    """
    if device.type != "cpu" or precision == "float32":
        return
    matrix = torch.ones(_SIZE, _SIZE)  # (N, N)
    ratio = product_seconds(matrix.to(getattr(torch, precision))) / product_seconds(matrix)
    if ratio > _TOO_SLOW:
        warnings.warn(
            f"this processor multiplies in {precision} {ratio:.1f} times slower than in float32; the training is "
            "faster with 'precision: float32' in its recipe",
            stacklevel=2,
        )


def product_seconds(matrix: Tensor) -> float:
    """The fastest of some products of a matrix with itself, (N, N)."""
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        linear(matrix, matrix)  # (N, N)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
