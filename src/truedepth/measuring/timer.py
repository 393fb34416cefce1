"""Timing several things in one process, in turns.

A machine's speed drifts with its clock, its temperature and its other work. Runs therefore take turns (A B C, then
C B A, ...), and two things are compared by their runs within the same round.
"""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

import torch

from truedepth.measuring.machine import OthersWork
from truedepth.records.progress import Progress, silent

Entry = TypeVar("Entry")
Result = TypeVar("Result")

MINIMUM_ROUNDS = 3
"""Fewer runs than this have no spread worth the name."""

BUSY = 0.1
"""A larger share of the processors in other programs' hands is told."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of several measurements, and the smallest and the largest of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))


def in_turns(
    entries: Sequence[Entry],
    run: Callable[[Entry, int], Result],
    *,
    rounds: int,
    least_rounds: int = MINIMUM_ROUNDS,
    max_seconds: float | None = None,
    warm_up: Callable[[Entry], object] | None = None,
    progress: Progress = silent,
    title: str = "Timing",
) -> dict[Entry, tuple[Result, ...]]:
    """What the runs of each entry give, by round; they take turns, without garbage collection.

    Args:
        entries: what takes turns.
        run: is given the entry and the round, from 0.
        max_seconds: start no further round after this time, but run at least `least_rounds`.
        warm_up: what comes before, once for each entry, and does not count; None: a run.
        progress: shown each run, those that do not count included, under `title`.
    """
    results: dict[Entry, list[Result]] = {entry: [] for entry in entries}
    began, others = time.perf_counter(), OthersWork()
    with undisturbed(), progress(title, (rounds + 1) * len(entries)) as advance:
        for entry in reversed(entries):
            warm_up(entry) if warm_up is not None else run(entry, 0)
            advance()
        for turn in range(rounds):
            late = max_seconds is not None and time.perf_counter() - began > max_seconds
            if late and turn >= least_rounds:
                break
            for entry in reversed(entries) if turn % 2 else entries:
                results[entry].append(run(entry, turn))
                advance()
    _warn_if_busy(others.share())
    return {entry: tuple(own) for entry, own in results.items()}


def _warn_if_busy(others: float) -> None:
    """Say once that figures cannot be trusted. Fellow ranks count as others, so there it is not said."""
    if others > BUSY and not torch.distributed.is_initialized():
        warnings.warn(
            f"other programs took {others:.0%} of this machine's processors during the timings, so speeds are lower "
            "and less certain than they could be; stop those programs and measure again",
            stacklevel=3,
        )


@contextmanager
def undisturbed() -> Iterator[None]:
    """No garbage collection; afterwards as it was."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def now(device: torch.device) -> float:
    """Seconds on a monotonic clock, once the device has finished all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
