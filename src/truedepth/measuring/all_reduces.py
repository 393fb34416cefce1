"""What an all-reduce takes over the ranks of a run that `torchrun` started."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median, quantiles

import torch
import torch.distributed as dist

from truedepth.measuring.rates import Range
from truedepth.measuring.speed import now
from truedepth.parallel.launch import started_ranks

_SMALL, _LARGE = 256, 2**20
"""Numbers of float32 in an all-reduce: a hidden state of 1 kB, and 4 MiB, which take time to send."""

_SMALL_REPEATS, _LARGE_REPEATS = 20, 20
_SMALL_RUN = 50
"""All-reduces that are timed together, about as many as a decode step has."""


def over_ranks(figure: Range, device: torch.device) -> Range:
    """A figure of every rank as one: the mean of the values, and the ends of all ranges."""
    if started_ranks() == 1:
        return figure
    own = torch.tensor([figure.value, figure.low, figure.high], dtype=torch.float64, device=device)  # (3,)
    all_of_them = [torch.empty_like(own) for _ in range(started_ranks())]
    dist.all_gather(all_of_them, own)
    values, lows, highs = torch.stack(all_of_them).T.tolist()  # (3, ranks)
    return Range(sum(values) / len(values), min(lows), max(highs))


def all_reduce_latency(device: torch.device) -> Range:
    """Seconds of an all-reduce of 1 kB, one after the other: the median, and the first and last tenth.

    Each figure is the mean over a run: a decode step takes the sum of its all-reduces, and those that take ten times as
    long as most, since a rank was woken late, are a good part of it.
    """
    return _range(_seconds(device, _SMALL, _SMALL_REPEATS, _SMALL_RUN))


def link_rate(device: torch.device, latency: Range) -> Range:
    """Bytes of an all-reduce of 4 MiB a second, without the latency: the median, and the first and last tenth."""
    seconds = _seconds(device, _LARGE, _LARGE_REPEATS)
    moving = [max(own - latency.value, own / 10) for own in seconds]
    return _range([4 * _LARGE / own for own in moving])


def _range(seen: Sequence[float]) -> Range:
    tenths = quantiles(seen, n=10)
    return Range(median(seen), tenths[0], tenths[-1])


def _seconds(device: torch.device, count: int, repeats: int, together: int = 1) -> list[float]:
    """Seconds of an all-reduce, of `repeats` runs of `together`, after some that do not count. All ranks call this."""
    numbers = torch.zeros(count, dtype=torch.float32, device=device)  # (count,)
    seconds = []
    for turn in range(repeats + 5):
        start = now(device)
        for _ in range(together):
            dist.all_reduce(numbers)
        if turn >= 5:
            seconds.append((now(device) - start) / together)
    return seconds
