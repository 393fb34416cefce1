"""Whether a processor gains time by a precision: some have no arithmetic for it, and convert every number."""

from __future__ import annotations

import warnings

import torch

from truedepth.hardware.rates import product_seconds

_SIZE, _SECONDS = 512, 0.05
_TOO_SLOW = 1.25
"""Times the seconds of float32; less is noise."""


def warn_of_slow_precision(precision: str, device: torch.device) -> None:
    """Warn where products on a CPU take longer in `precision` than in float32.

    bfloat16 saves time on processors that have arithmetic for it, as AVX-512 BF16 and AMX are.
    """
    if device.type != "cpu" or precision == "float32":
        return
    matrix = torch.ones(_SIZE, _SIZE)  # (N, N)
    seconds = [
        product_seconds([matrix.to(kind)], _SIZE, _SECONDS) for kind in (getattr(torch, precision), torch.float32)
    ]
    ratio = seconds[0] / seconds[1]
    if ratio > _TOO_SLOW:
        warnings.warn(
            f"this processor multiplies in {precision} {ratio:.1f} times slower than in float32; the training is "
            "faster with 'precision: float32' in its recipe",
            stacklevel=2,
        )
