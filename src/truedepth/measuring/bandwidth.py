"""The rate at which a device reads its memory, which bounds decoding: every token reads all weights."""

from __future__ import annotations

import time

import torch

from truedepth.errors import TruedepthError
from truedepth.measuring.timer import now

_CPU_BYTES, _ACCELERATOR_BYTES = 256 * 2**20, 2**30
_SECONDS = 1.0
_PASSES = 5


def beyond_caches(device: torch.device) -> int:
    """Bytes of several times the last-level caches, so that what reads them all reads memory."""
    return _CPU_BYTES if device.type == "cpu" else _ACCELERATOR_BYTES


def read_bandwidth(device: torch.device) -> float:
    """Bytes per second at which `device` reads its memory: the best of many passes within about a second.

    One pass is `torch.sum` over a float32 buffer of 256 MiB on a CPU, with as many threads as PyTorch uses,
    or 1 GiB on an accelerator: a read of each byte once, in order, with hardly any arithmetic. The best
    pass counts, since other work on the machine can only slow a pass down. A CPU whose caches hold more
    than 256 MiB is overrated.

    Raises:
        TruedepthError: the buffer does not fit into the device's free memory.
    """
    size = beyond_caches(device)
    try:
        # Ones, not zeros: a page that was never written is no memory at all.
        buffer = torch.ones(size // 4, dtype=torch.float32, device=device)
    except RuntimeError:
        raise TruedepthError(
            f"measuring the memory bandwidth of {device} takes {size // 2**20} MiB of free memory; free some"
        ) from None
    best = float("inf")
    passes, deadline = 0, time.perf_counter() + _SECONDS
    with torch.no_grad():
        while passes < _PASSES or time.perf_counter() < deadline:
            start = now(device)
            buffer.sum()
            best = min(best, now(device) - start)
            passes += 1
    return size / best
