"""Facts of the machine."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import pytest
import torch

from truedepth.measuring import machine, timer
from truedepth.measuring.machine import OthersWork, machine_record, processor_name, usable_cores
from truedepth.measuring.timer import in_turns

CPUINFO = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz
processor\t: 1
model name\t: Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz
"""


def test_processor_from_cpuinfo(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(CPUINFO)
    assert processor_name(file) == "Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz"


def test_processor_without_a_model_name(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nBogoMIPS\t: 243.75\n")
    assert processor_name(file)
    assert processor_name(tmp_path / "missing")


def test_work_of_others_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process does is not others' work; what another does is."""
    ours, alls = iter([10.0, 10.5]), iter([100.0, 100.5 + usable_cores()])
    monkeypatch.setattr(machine, "_own_seconds", lambda: next(ours))
    monkeypatch.setattr(machine, "_busy_seconds", lambda: next(alls))
    clock = iter([0.0, 4.0])
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(clock))
    assert OthersWork().share() == 0.25


def test_own_work_is_not_others() -> None:
    work, until = OthersWork(), time.process_time() + 0.2
    while time.process_time() < until:
        pass
    own = machine._own_seconds() - work._own
    assert own > 0.15
    assert work._all + own <= machine._busy_seconds() + 0.05  # the system counts it too, in ticks of 10 ms


@pytest.mark.parametrize("others", [0.05, 0.4])
def test_timings_on_a_busy_machine_are_told(others: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OthersWork, "share", lambda self: others)
    monkeypatch.setattr(timer, "BUSY", 0.1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        in_turns([1, 2], lambda entry, turn: entry, rounds=3)
    assert [str(each.message)[:60] for each in told] == (
        ["other programs took 40% of this machine's processors during "] if others > 0.1 else []
    )


def test_record_of_this_machine() -> None:
    record = machine_record(torch.device("cpu"), 25e9)
    assert record.device == "cpu"
    assert record.bandwidth_bytes_per_second == 25e9
    assert record.cores == usable_cores() >= 1
    assert record.threads == torch.get_num_threads()
    assert record.memory_bytes > 2**28
    assert record.torch == torch.__version__
