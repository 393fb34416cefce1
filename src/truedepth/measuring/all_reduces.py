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

_SMALL_REPEATS, _LARGE_REPEATS = 200, 20


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
    """Seconds of an all-reduce of 1 kB, one after the other: the median, and the first and last tenth."""
    return _range(_seconds(device, _SMALL, _SMALL_REPEATS))


def link_rate(device: torch.device, latency: Range) -> Range:
    """Bytes of an all-reduce of 4 MiB a second, without the latency: the median, and the first and last tenth."""
    seconds = _seconds(device, _LARGE, _LARGE_REPEATS)
    moving = [max(own - latency.value, own / 10) for own in seconds]
    return _range([4 * _LARGE / own for own in moving])


def _range(seen: Sequence[float]) -> Range:
    tenths = quantiles(seen, n=10)
    return Range(median(seen), tenths[0], tenths[-1])


def _seconds(device: torch.device, count: int, repeats: int) -> list[float]:
    """Seconds of each of `repeats` all-reduces, after some that do not count. All ranks must call this."""
    numbers = torch.zeros(count, dtype=torch.float32, device=device)  # (count,)
    seconds = []
    for turn in range(repeats + 5):
        start = now(device)
        dist.all_reduce(numbers)
        if turn >= 5:
            seconds.append(now(device) - start)
    return seconds
