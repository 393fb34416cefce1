"""How long a text may be: for each type of rotary embedding, the length that vLLM serves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from truedepth.models.context import context_length
from truedepth.models.loading.load import load

LONGROPE = {"short_factor": [1.0] * 4, "long_factor": [4.0, 5.0, 6.0, 9.0]}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("family", "rotary", "expected"),
    [
        ("llama", {"rope_type": "default"}, 128),
        # YaRN: Qwen's recipe, which leaves the model's length as it was; a length that is scaled already; one left out.
        ("qwen2", {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
        ("qwen2", {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
        ("qwen2", {"rope_type": "yarn", "factor": 4.0}, 512),
        ("qwen3", {"rope_type": "yarn", "factor": 2.5, "original_max_position_embeddings": 100}, 250),
        ("llama", {"rope_type": "linear", "factor": 2.0}, 256),
        ("llama", {"rope_type": "llama3", **LLAMA3}, 128),
        ("llama", {"rope_type": "dynamic", "factor": 2.0}, 128),
        ("phi3", {"rope_type": "longrope", **LONGROPE, "original_max_position_embeddings": 64}, 64),
        ("gemma3", {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}}, 128),
    ],
)
def test_by_the_type_of_rotary_embedding(
    family: str, rotary: dict[str, Any], expected: int, tiny_model: Callable[..., Any]
) -> None:
    if family != "gemma3":
        rotary = {"rope_theta": 1e4, **rotary}
    else:
        rotary = {**rotary, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    others = {}
    if family == "phi3":
        rotary["partial_rotary_factor"] = 1.0
        others = {"original_max_position_embeddings": rotary["original_max_position_embeddings"]}
    assert context_length(tiny_model(family, rope_parameters=rotary, **others).config) == expected


def test_of_a_gguf_file(tiny_model: Callable[..., Any], write_gguf: Callable[..., Path]) -> None:
    def edit(writer: Any) -> None:
        writer.add_string("qwen2.rope.scaling.type", "yarn")
        writer.add_float32("qwen2.rope.scaling.factor", 4.0)
        writer.add_uint32("qwen2.rope.scaling.original_context_length", 128)

    path = write_gguf(tiny_model("qwen2"), "qwen2", edit=edit)
    assert context_length(load(str(path)).model.config) == 512
