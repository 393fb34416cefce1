"""Where a model goes and in which type: the options `device` and `dtype`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from truedepth.errors import UsageError
from truedepth.records.given import require_type

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "bfloat16", "float16")


def resolve_device(name: str) -> torch.device:
    """The device that an option means: `auto` (CUDA, else MPS, else CPU), or a torch device such as `cuda:1`.

    Raises:
        UsageError: no such device, or it is not available here; the message lists those that are.
    """
    import torch

    require_type("the device", name, str, "auto, cpu, cuda, cuda:1 or mps")
    available = available_devices()
    if name == "auto":
        return torch.device(available[0])
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device '{name}'; choose one of: auto, {', '.join(available)}") from None
    if device.type not in {known.partition(":")[0] for known in available} or (
        device.index is not None and str(device) not in available
    ):
        raise UsageError(f"device '{name}' is not available here; choose one of: auto, {', '.join(available)}")
    return device


def available_devices() -> list[str]:
    """Names of the devices of this machine, fastest first; the first is what `auto` picks."""
    import torch

    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        devices.append("mps")
    return [*devices, "cpu"]


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type that an option means on a device.

    `auto` is float32 on the CPU (where the half types are emulated unless the processor has units for them)
    and on other devices bfloat16, or float16 where they do not have it.

    Raises:
        UsageError: no such type.
    """
    import torch

    if name not in DTYPES:
        raise UsageError(f"unknown dtype '{name}'; choose one of: {', '.join(DTYPES)}")
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type == "cpu":
        return torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if torch.backends.mps.is_macos_or_newer(14, 0) else torch.float16
