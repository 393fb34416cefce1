"""Fixtures for exports: checkpoints of tiny models with a tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
TOKENS = 259


@pytest.fixture
def tiny_checkpoint(tmp_path: Path, tiny_model: Callable[..., Any], tiny_folder: Path) -> Callable[..., Any]:
    """`tiny_checkpoint("qwen3", **overrides)`: a folder with a tiny model and a tokenizer, and the model itself."""

    def make(name: str, **overrides: Any) -> tuple[Path, Any]:
        model = tiny_model(name, **{"vocab_size": TOKENS, **overrides})
        folder = tmp_path / f"source-{name}"
        model.save_pretrained(folder)
        for file in TOKENIZER_FILES:
            shutil.copyfile(tiny_folder / file, folder / file)
        return folder, model

    return make
