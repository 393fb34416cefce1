"""Whether a model fits: the bytes it needs against the bytes that are free, before anything is read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from truedepth.errors import ModelLoadError

if TYPE_CHECKING:
    import torch
    from torch import nn

CGROUPS = Path("/sys/fs/cgroup")
# Limit, use, and the key of reclaimable file cache in memory.stat, of cgroup versions 2 and 1.
CGROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


def weight_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of a model's parameters in `dtype`, tied ones once. The model may be on the meta device."""
    return sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize


def loading_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of main memory that loading takes at its peak: all parameters in `dtype`, and the largest of them
    once more in float32, since tensors are converted one by one."""
    largest = max((parameter.numel() for parameter in model.parameters()), default=0)
    return weight_bytes(model, dtype) + 4 * largest


def available_bytes(device: torch.device) -> int:
    """Bytes that are free on a device. For the CPU: what the system can give without swapping, within the
    limit of the container."""
    import psutil
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory()) - int(torch.mps.driver_allocated_memory())
    free = int(psutil.virtual_memory().available)
    limited = _container_bytes(CGROUPS)
    return free if limited is None else min(free, limited)


def require_memory(name: str, model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse a model that does not fit.

    Args:
        name: what the user calls the model.
        model: on the meta device.

    Raises:
        ModelLoadError: with the bytes needed and free, and what to do.
    """
    import torch

    cpu = torch.device("cpu")
    checks = [(loading_bytes(model, dtype), cpu)]
    if device.type != "cpu":
        checks.append((weight_bytes(model, dtype), device))
    for need, memory in checks:
        free = available_bytes(memory)
        if need > free:
            half = dtype.itemsize > torch.bfloat16.itemsize and loading_bytes(model, torch.bfloat16) <= free
            remedy = "use dtype bfloat16, which halves it" if half else "use a smaller model"
            raise ModelLoadError(
                f"model '{name}' needs {_readable(need)} of memory on {memory} in "
                f"{str(dtype).removeprefix('torch.')}, but {_readable(free)} is free; {remedy}, "
                "or free memory by closing other programs"
            )


def _readable(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _container_bytes(root: Path) -> int | None:
    """What a memory limit on this container leaves, or None without a limit."""
    for limit_file, use_file, stat_file, cache_key in CGROUP_FILES:
        try:
            limit = int((root / limit_file).read_text())
            used = int((root / use_file).read_text())
            stat = dict(line.split() for line in (root / stat_file).read_text().splitlines())
        except (OSError, ValueError):
            # No such file, or the word "max": no limit of this kind.
            continue
        return max(0, limit - used + int(stat.get(cache_key, 0)))
    return None
