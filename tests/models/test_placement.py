"""The options `device` and `dtype` on machines of each kind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from truedepth.errors import UsageError
from truedepth.models.loading.placement import available_devices, resolve_device, resolve_dtype


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def make(*, gpus: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return make


def test_auto_takes_the_fastest_device(machine: Callable[..., None]) -> None:
    machine()
    assert (resolve_device("auto"), available_devices()) == (torch.device("cpu"), ["cpu"])
    machine(mps=True)
    assert resolve_device("auto") == torch.device("mps")
    machine(gpus=2)
    assert available_devices() == ["cuda:0", "cuda:1", "cpu"]
    assert resolve_device("auto") == torch.device("cuda:0")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    assert resolve_device("cuda") == torch.device("cuda")
    with pytest.raises(UsageError, match="'cuda:2' is not available here; choose one of: auto, cuda:0, cuda:1, cpu"):
        resolve_device("cuda:2")


def test_auto_takes_the_type_that_the_device_is_fast_at(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32
    assert resolve_dtype("float16", torch.device("cpu")) == torch.float16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert resolve_dtype("auto", torch.device("cuda")) == torch.float16
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: True)
    assert resolve_dtype("auto", torch.device("mps")) == torch.bfloat16
    with pytest.raises(UsageError, match="unknown dtype 'half'"):
        resolve_dtype("half", torch.device("cpu"))
