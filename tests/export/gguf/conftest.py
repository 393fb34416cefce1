"""Fixtures for GGUF files: tiny models saved with a tokenizer, and what such a file says by gguf-py's own reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TOKENS = [
    "<pad>",
    "<s>",
    "</s>",
    "Ġ",
    "Ċ",
    *"0123456789abcdefghijklmnopqrstuvwxyz.,!?-",
    "ĠĠ",
    "ĊĊ",
    "th",
    "the",
    "Ġthe",
]
MERGES = [("Ġ", "Ġ"), ("Ċ", "Ċ"), ("t", "h"), ("th", "e"), ("Ġ", "the")]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
PLAIN = {
    "smollm3": {"no_rope_layer_interval": 4},
    "mistral": {"sliding_window": None},
}
"""What the tiny model of a family must have for llama.cpp to express it."""


@pytest.fixture
def byte_level() -> Callable[..., Any]:
    """`byte_level(split=None, **model)`: a byte-level BPE tokenizer with special tokens and a chat template."""

    def make(split: Any = None, **model: Any) -> Any:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        backend = Tokenizer(models.BPE({token: index for index, token in enumerate(TOKENS)}, MERGES, **model))
        backend.pre_tokenizer = split or pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
        )
        tokenizer.chat_template = TEMPLATE
        return tokenizer

    return make


@pytest.fixture
def saved(tmp_path: Path, tiny_model: Callable[..., Any], byte_level: Callable[..., Any]) -> Callable[..., Path]:
    """`saved("llama", tokenizer=None, **overrides)`: a folder with a tiny model and a tokenizer."""

    def save(family: str, tokenizer: Any = None, **overrides: Any) -> Path:
        folder = tmp_path / "model"
        tiny_model(family, **PLAIN.get(family, {}) | overrides).save_pretrained(folder)
        (tokenizer or byte_level()).save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., Any]:
    """`export(source, plan, type="f32")`: what `export_gguf` returns for a plan in notation; None for all layers."""

    def run(
        source: Any, plan: str | None = None, type: str = "f32", name: str = "out.gguf", layers: int = 6, **given: Any
    ) -> Any:
        from truedepth.export.gguf.export import export_gguf
        from truedepth.methods.plan_text import read_plan

        return export_gguf(str(source), read_plan(plan, layers, **given), tmp_path / name, type=type)

    return run


@pytest.fixture
def contents() -> Callable[[Path], tuple[dict[str, Any], dict[str, Any]]]:
    """`contents(path)`: metadata by key, and tensors by name, as gguf-py's own reader has them."""

    def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        import gguf

        reader = gguf.GGUFReader(path)
        fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
        return fields, {tensor.name: tensor for tensor in reader.tensors}

    return read
