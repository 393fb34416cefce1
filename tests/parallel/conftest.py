"""Ranks that are threads of this process, so that any number of them and many plans can be tested fast."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from truedepth.parallel.ranks import Traffic


class ThreadRanks:
    """One of several threads that run a model together."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, given: list[Any]) -> None:
        self.rank, self.size, self.traffic = rank, size, Traffic()
        self._barrier, self._given = barrier, given

    def _all(self, tensor: Tensor) -> list[Tensor]:
        self._given[self.rank] = tensor
        self._barrier.wait(30)
        found = [given.clone() for given in self._given]
        self._barrier.wait(30)
        return found

    def sum(self, tensor: Tensor) -> Tensor:
        self.traffic.all_reduces += 1
        return torch.stack(self._all(tensor)).sum(0)

    def gather(self, tensor: Tensor) -> Tensor:
        self.traffic.all_gathers += 1
        return torch.stack(self._all(tensor))


@pytest.fixture(scope="session")
def on_threads() -> Callable[..., list[Any]]:
    """`on_threads(3, job)`: what `job(ranks)` returns on each of three ranks."""

    def run(size: int, job: Callable[[ThreadRanks], Any]) -> list[Any]:
        barrier, given = threading.Barrier(size), [None] * size

        def one(rank: int) -> Any:
            try:
                return job(ThreadRanks(rank, size, barrier, given))
            except BaseException:
                barrier.abort()
                raise

        with ThreadPoolExecutor(size) as pool:
            jobs = [pool.submit(one, rank) for rank in range(size)]
        errors = [error for job in jobs if (error := job.exception()) is not None]
        real = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
        for error in (*real, *errors):
            raise error
        return [job.result() for job in jobs]

    return run
