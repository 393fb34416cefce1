"""The bandwidth probe: its arithmetic on a clock of our own, and its refusal. No test looks at real rates."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from truedepth.errors import TruedepthError
from truedepth.measuring import bandwidth

CPU = torch.device("cpu")


def test_the_fastest_pass_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = [4.0, 3.0, 0.5, 2.0, 5.0]
    readings = itertools.chain.from_iterable((0.0, seconds) for seconds in passes)
    monkeypatch.setattr(bandwidth, "now", lambda device: next(readings))
    monkeypatch.setattr(bandwidth, "_CPU_BYTES", 1000)
    monkeypatch.setattr(bandwidth, "_SECONDS", 0.0)
    assert bandwidth.read_bandwidth(CPU) == 1000 / 0.5


def test_no_memory_for_the_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "ones", full)
    with pytest.raises(TruedepthError, match="256 MiB of free memory"):
        bandwidth.read_bandwidth(CPU)
