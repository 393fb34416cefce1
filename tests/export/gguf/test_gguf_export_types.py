"""Types of matrices: what can be written, what becomes of rows that do not fit, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from truedepth.errors import UsageError
from truedepth.export.gguf.types import TYPES, encode, require_type, stored_as

Make = Callable[..., Any]

# Largest error of a value, as a share of the largest of its row.
ERRORS = {"f32": 0.0, "f16": 1e-3, "bf16": 4e-3, "q8_0": 0.01, "q5_1": 0.04, "q5_0": 0.07, "q4_1": 0.07, "q4_0": 0.13}


@pytest.mark.parametrize("name", TYPES)
def test_every_type_reads_back_close_to_what_was_written(name: str) -> None:
    import gguf

    weights = torch.randn(7, 64, generator=torch.Generator().manual_seed(0))
    stored = stored_as(name, (7, 64), head=False)
    written = encode("w", weights, stored)
    assert written.nbytes == stored.nbytes
    read = torch.from_numpy(gguf.quants.dequantize(written, stored.kind).copy())
    error = (read - weights).abs().amax(1) / weights.abs().amax(1)
    assert error.max() <= ERRORS[name]
    assert name == "f32" or error.max() > 0


def test_large_tensors_are_encoded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from truedepth.export.gguf import types as gguf_types

    weights = torch.randn(33, 32, dtype=torch.bfloat16)
    stored = stored_as("q8_0", (33, 32), head=False)
    whole = encode("w", weights, stored)
    monkeypatch.setattr(gguf_types, "_CHUNK", 100)
    assert np.array_equal(encode("w", weights, stored), whole)


def test_vectors_stay_float32_and_uneven_rows_become_f16(saved: Make, export: Make, contents: Make) -> None:
    written = export(saved("llama", intermediate_size=40), "0 (1|2)", type="q4_0")
    fields, tensors = contents(written.path)
    kinds = {name: tensor.tensor_type.name for name, tensor in tensors.items()}
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["blk.0.ffn_up.weight"] == kinds["token_embd.weight"] == "Q4_0"
    assert kinds["output.weight"] == "Q8_0"
    assert written.notes == ("matrices with rows of 40, 80 values are stored as f16: q4_0 has blocks of 32",)
    assert fields["general.file_type"] == 2
    assert fields["general.quantization_version"] == 2


def test_a_tied_embedding_is_the_head_too(saved: Make, export: Make, contents: Make) -> None:
    _, tensors = contents(export(saved("llama", tie_word_embeddings=True), type="q4_1").path)
    assert "output.weight" not in tensors
    assert tensors["token_embd.weight"].tensor_type.name == "Q8_0"


def test_other_types_are_llama_cpps_own_to_make() -> None:
    assert require_type("Q8_0") == "q8_0"
    with pytest.raises(
        UsageError, match=r"'q4_k_m'; choose one of f32, .*: llama-quantize FILE.gguf SMALLER.gguf Q4_K_M"
    ):
        require_type("q4_k_m")


def test_float16_has_no_room_for_large_values(tiny_model: Make, saved: Make, export: Make, tmp_path: Any) -> None:
    folder = saved("llama")
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[3].mlp.up_proj.weight[0, 0] = 1e5
    model.save_pretrained(folder)
    with pytest.raises(UsageError, match=r"'blk.3.ffn_up.weight' has values up to 1e\+05.*bf16"):
        export(folder, type="f16")
    assert not list(tmp_path.glob("*out.gguf*"))
    assert export(folder, type="bf16").type == "bf16"
