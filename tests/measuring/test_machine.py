"""Facts of the machine."""

from __future__ import annotations

from pathlib import Path

import torch

from truedepth.measuring.machine import machine_record, processor_name, usable_cores

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


def test_record_of_this_machine() -> None:
    record = machine_record(torch.device("cpu"), 25e9)
    assert record.device == "cpu"
    assert record.bandwidth_bytes_per_second == 25e9
    assert record.cores == usable_cores() >= 1
    assert record.threads == torch.get_num_threads()
    assert record.memory_bytes > 2**28
    assert record.torch == torch.__version__
