"""What the machine is and how busy: the facts that every measured figure is published with."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path

import psutil
import torch
import transformers
from pydantic import Field

from truedepth.records.schema import Record

_SAMPLE_SECONDS = 0.3


class MachineRecord(Record):
    processor: str
    cores: int
    memory_bytes: int
    device: str
    bandwidth_bytes_per_second: float = Field(description="measured memory read bandwidth of the device")
    torch: str
    transformers: str
    threads: int
    others: float | None = Field(
        default=None, description="share of the usable cores that other programs took when this was recorded"
    )


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
        others=_others_now(),
    )


class OthersWork:
    """Processor time that other programs take from when this is made."""

    def __init__(self) -> None:
        self._began, self._own, self._all = time.perf_counter(), _own_seconds(), _busy_seconds()

    def share(self) -> float:
        """Of the cores that this process may use, 0 to 1."""
        others = (_busy_seconds() - self._all) - (_own_seconds() - self._own)
        available = usable_cores() * (time.perf_counter() - self._began)
        return min(1.0, max(0.0, others / available)) if available > 0 else 0.0


def _others_now() -> float:
    work = OthersWork()
    time.sleep(_SAMPLE_SECONDS)
    return round(work.share(), 2)


def _own_seconds() -> float:
    times = psutil.Process().cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def _busy_seconds() -> float:
    """Of the usable cores, all programs together; what a hypervisor gave to other machines counts too."""
    cores = psutil.cpu_times(percpu=True)
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(cores))
    # `guest` is a part of `user`, and `iowait` of the time in which nothing ran.
    idle = ("idle", "iowait", "guest", "guest_nice")
    times = [cores[core] for core in usable if core < len(cores)]
    return float(sum(sum(own) - sum(getattr(own, kind, 0.0) for kind in idle) for own in times))


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
