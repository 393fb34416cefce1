"""A model that does not fit is refused before anything is read, with what it needs and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from truedepth.errors import ModelLoadError
from truedepth.models.loading import checkpoint as checkpoint_files
from truedepth.models.loading import memory
from truedepth.models.loading.load import load

Make = Callable[..., Any]


def test_needed_bytes_are_those_of_the_parameters(tiny_model: Make) -> None:
    import torch

    model = tiny_model("llama", tie_word_embeddings=True)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert memory.weight_bytes(model, torch.float32) == 4 * count
    assert memory.weight_bytes(model, torch.bfloat16) == 2 * count
    largest = 64 * 32
    assert memory.loading_bytes(model, torch.bfloat16) == 2 * count + 4 * largest


def test_too_large_a_model_is_refused_before_its_weights(checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint("llama")
    monkeypatch.setattr(memory, "available_bytes", lambda device: 100_000)
    monkeypatch.setattr(checkpoint_files, "load_weights", None)
    with pytest.raises(
        ModelLoadError,
        match=r"needs 0\.2 MB of memory on cpu in float32, but 0\.1 MB is free; use a smaller model",
    ):
        load(str(folder))


def test_half_the_bytes_are_proposed_where_they_fit(checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint("llama")
    monkeypatch.setattr(memory, "available_bytes", lambda device: 150_000)
    with pytest.raises(ModelLoadError, match="use dtype bfloat16, which halves it"):
        load(str(folder))
    load(str(folder), dtype="bfloat16")


def test_gguf_files_are_checked_too(tiny_model: Make, write_gguf: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: 100_000)
    with pytest.raises(ModelLoadError, match=r"tiny\.gguf' needs 0\.2 MB of memory"):
        load(str(write_gguf(tiny_model("llama"))))


def test_free_memory_is_what_the_system_and_the_container_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil
    import torch

    cpu = torch.device("cpu")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    assert memory.available_bytes(cpu) == pytest.approx(psutil.virtual_memory().available, rel=0.2)

    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 300\ninactive_file 250\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_bytes(cpu) > 1_000_000
    (tmp_path / "memory.max").write_text("1000\n")
    assert memory.available_bytes(cpu) == 1000 - 700 + 250

    for name in ("memory.max", "memory.current", "memory.stat"):
        (tmp_path / name).unlink()
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("2000\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("500\n")
    (tmp_path / "memory" / "memory.stat").write_text("total_inactive_file 100\n")
    assert memory.available_bytes(cpu) == 1600
