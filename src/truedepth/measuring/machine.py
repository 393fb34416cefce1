"""What the machine is: the facts that every measured figure is published with."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import psutil
import torch
import transformers
from pydantic import Field

from truedepth.records.schema import Record


class MachineRecord(Record):
    processor: str
    cores: int
    memory_bytes: int
    device: str
    bandwidth_bytes_per_second: float = Field(description="measured memory read bandwidth of the device")
    torch: str
    transformers: str
    threads: int


def machine_record(device: torch.device, bandwidth: float) -> MachineRecord:
    """The facts of this machine, seen from `device`.

    Args:
        device: where the model runs.
        bandwidth: bytes per second, from `bandwidth.read_bandwidth`.
    """
    return MachineRecord(
        processor=processor_name(),
        cores=usable_cores(),
        memory_bytes=psutil.virtual_memory().total,
        device=device_name(device),
        bandwidth_bytes_per_second=bandwidth,
        torch=torch.__version__,
        transformers=transformers.__version__,
        threads=torch.get_num_threads(),
    )


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor as its maker names it, or at least its architecture.

    Args:
        cpuinfo: where Linux describes the processor.
    """
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    if platform.system() == "Darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.stdout.strip():
            return answer.stdout.strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Logical cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def device_name(device: torch.device) -> str:
    """Such as `cpu`, `mps` or `cuda (NVIDIA A100 80GB PCIe)`."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return device.type
