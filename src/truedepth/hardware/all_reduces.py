"""What an all-reduce takes over the ranks of a run that `torchrun` started."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from statistics import median, quantiles

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from truedepth.hardware.formula import Range
from truedepth.hardware.rates import usual_width, weights
from truedepth.measuring.timer import in_turns, now
from truedepth.parallel.launch import started_ranks

_SMALL, _LARGE = 256, 2**20
"""Numbers of float32 in an all-reduce: a hidden state of 1 kB, and 4 MiB, which take time to send."""

_REPEATS, _WARMUP = 20, 5
_RUN = 50
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


def all_reduce_latency(device: torch.device, dtype: torch.dtype) -> Range:
    """Seconds that an all-reduce of 1 kB adds to a decode step: the median, and the first and last tenth.

    Each figure is what a run of products takes longer with an all-reduce after each than without, over the number of
    all-reduces: ranks that have work in between wait for the later one, and go on with cold caches. A step takes the
    sum of its all-reduces, and those that take ten times as long as most, since a rank was woken late, are a good part
    of it. All ranks call this.

    Raises:
        TruedepthError: see `truedepth.hardware.rates.weights`.
    """
    matrices = weights(device, dtype, usual_width(device))
    entries = {"alone": None, "both": torch.zeros(_SMALL, device=device)}
    seconds = in_turns(
        list(entries),
        lambda name, _: _run_seconds(matrices, entries[name]),
        rounds=_REPEATS,
        warm_up=lambda name: [_run_seconds(matrices, entries[name]) for _ in range(_WARMUP)],
    )
    pairs = zip(seconds["alone"], seconds["both"], strict=True)
    return _range([max(0.0, both - alone) / _RUN for alone, both in pairs])


def _run_seconds(matrices: Sequence[Tensor], hidden: Tensor | None) -> float:
    """Seconds of a run of products of 1 row, with an all-reduce of `hidden` after each if there is one."""
    inputs = matrices[0].new_ones(1, len(matrices[0]))  # (1, D)
    dist.barrier()
    start = now(inputs.device)
    with torch.no_grad():
        for matrix in islice(cycle(matrices), _RUN):
            functional.linear(inputs, matrix)  # (1, D)
            if hidden is not None:
                dist.all_reduce(hidden)
    return now(inputs.device) - start


def link_rate(device: torch.device, latency: Range) -> Range:
    """Bytes of an all-reduce of 4 MiB a second, without the latency: the median, and the first and last tenth."""
    numbers = torch.zeros(_LARGE, device=device)
    moving = []
    for turn in range(_REPEATS + _WARMUP):
        start = now(device)
        dist.all_reduce(numbers)
        own = now(device) - start
        if turn >= _WARMUP:
            moving.append(max(own - latency.value, own / 10))
    return _range([numbers.nbytes / own for own in moving])


def _range(seen: Sequence[float]) -> Range:
    tenths = quantiles(seen, n=10)
    return Range(median(seen), tenths[0], tenths[-1])
