"""A plan on a model of each family as a GGUF file: what it says, and that it computes what the plan computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import truedepth
from truedepth.models.loading.load import load
from truedepth.plan import DepthPlan

Make = Callable[..., Any]

# general.architecture of each family that llama.cpp can express, and a plan that only leaves layers out or merges.
PLAIN = {
    "llama": ("llama", "0 (1+2) 4 5"),
    "mistral": ("llama", "0 2 5"),
    "qwen2": ("qwen2", "0 1 3-5"),
    "qwen3": ("qwen3", "0 2-5"),
    "smollm3": ("smollm3", "0 1 5 3"),
    "phi3": ("phi3", "1 2 4"),
    "olmo2": ("olmo2", "0 2 4"),
}
# Overrides of a family's configuration that must reach the file.
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"head_dim": 16}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    (
        "qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 1e4,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    (
        "llama",
        {
            "head_dim": 32,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
    ),
    ("phi3", {"hidden_size": 64, "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    (
        "phi3",
        {
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "long_factor": [1.0, 1.5, 2.0, 3.0],
                "short_factor": [1.0, 1.1, 1.2, 1.3],
                "original_max_position_embeddings": 64,
            },
        },
    ),
]


def logits(model: Any, ids: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("family", PLAIN)
def test_a_plan_without_groups_reads_back_with_the_same_logits(
    family: str, tiny_model: Make, saved: Make, export: Make, token_ids: Make
) -> None:
    architecture, plan = PLAIN[family]
    folder = saved(family)
    written = export(folder, plan)
    assert (written.architecture, written.blocks) == (architecture, len(DepthPlan.parse(plan, 6).stages))
    assert written.nbytes == written.path.stat().st_size
    source, loaded = load(str(folder)), load(str(written.path))
    if family == "smollm3":
        # transformers tells by a layer's number whether it has rotary embedding; so does the shorter model.
        assert loaded.model.config.no_rope_layers == [1, 1, 1, 0]
    truedepth.apply(source.model, DepthPlan.parse(plan, 6))
    ids = token_ids(2, 24)
    assert (logits(loaded.model, ids) - logits(source.model, ids)).abs().max() <= 1e-5
    text = "the  an\n\n7."
    assert loaded.tokenizer(text).input_ids == source.tokenizer(text).input_ids
    assert loaded.tokenizer.chat_template == source.tokenizer.chat_template
    assert loaded.tokenizer.eos_token == "</s>"


@pytest.mark.parametrize(("family", "overrides"), OPTIONS)
def test_options_of_a_family_carry_over(
    family: str, overrides: dict[str, Any], saved: Make, export: Make, token_ids: Make
) -> None:
    folder = saved(family, **overrides)
    source, loaded = load(str(folder)).model, load(str(export(folder).path)).model
    ids = token_ids(2, 40)
    assert (logits(loaded, ids) - logits(source, ids)).abs().max() <= 1e-5
    assert loaded.config.tie_word_embeddings == source.config.tie_word_embeddings


def test_equally_wide_groups_keep_the_architecture(saved: Make, export: Make, token_ids: Make) -> None:
    folder, plan = saved("llama"), "(0|1) (3|2) (4|5)"
    written = export(folder, plan)
    assert written.architecture == "llama"
    source, loaded = load(str(folder)).model, load(str(written.path)).model
    assert (loaded.config.num_attention_heads, loaded.config.head_dim) == (8, 8)
    truedepth.apply(source, DepthPlan.parse(plan, 6))
    ids = token_ids(2, 24)
    assert (logits(loaded, ids) - logits(source, ids)).abs().max() <= 1e-5


def test_different_widths_stand_in_arrays(saved: Make, export: Make, contents: Make) -> None:
    written = export(saved("llama"), "0 (1|2|3) (4|5)")
    assert written.architecture == "deci"
    fields, tensors = contents(written.path)
    assert fields["deci.attention.head_count"] == [4, 12, 8]
    assert fields["deci.attention.head_count_kv"] == [2, 6, 4]
    assert fields["deci.feed_forward_length"] == [48, 144, 96]
    assert fields["deci.block_count"] == 3
    # llama.cpp takes these from the first block's heads where they are not given.
    keys = ("attention.key_length", "attention.value_length", "rope.dimension_count")
    assert [fields[f"deci.{key}"] for key in keys] == [8, 8, 8]
    assert fields["deci.rope.freq_base"] == 10_000
    assert fields["truedepth.plan"] == "0 (1|2|3) (4|5)"
    # gguf-py has the fastest dimension first.
    assert list(tensors["blk.1.attn_q.weight"].shape) == [32, 96]
    assert list(tensors["blk.1.attn_k.weight"].shape) == [32, 48]
    assert list(tensors["blk.1.attn_output.weight"].shape) == [96, 32]
    assert list(tensors["blk.2.ffn_down.weight"].shape) == [96, 32]
    assert len(tensors) == 3 * 9 + 3


@pytest.mark.parametrize(("family", "overrides"), [("llama", {"attention_bias": True}), ("qwen2", {}), ("phi3", {})])
def test_wide_blocks_compute_what_their_groups_compute(
    family: str, overrides: dict[str, Any], saved: Make, export: Make, token_ids: Make, tmp_path: Path
) -> None:
    """Blocks of `deci`, taken apart again by llama.cpp's rules, in a llama model whose layers differ in width."""
    import torch
    from torch import nn

    from truedepth.models.gguf.file import read_gguf
    from truedepth.models.gguf.weights import from_pairs

    folder, plan = saved(family, **overrides), "0 (1|2) 3 (5|4)"
    file = read_gguf(export(folder, plan).path)
    source = load(str(folder)).model
    model = load(str(export(folder, "0 1 3 5", name="plain.gguf").path)).model if family != "phi3" else None
    truedepth.apply(source, DepthPlan.parse(plan, 6))
    if model is None:
        from transformers import AutoConfig, AutoModelForCausalLM

        given = source.config.to_dict()
        keep = (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_attention_heads",
            "num_key_value_heads",
            "rms_norm_eps",
        )
        config = AutoConfig.for_model("llama", num_hidden_layers=4, **{key: given[key] for key in keep})
        model = AutoModelForCausalLM.from_config(config).eval()

    def parameter(name: str) -> Any:
        return nn.Parameter(torch.from_numpy(file.read(name)))

    def linear(name: str, heads: int = 0) -> Any:
        weight, bias = parameter(f"{name}.weight"), None
        if f"{name}.bias" in file.tensors:
            bias = parameter(f"{name}.bias")
        made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        made.weight = nn.Parameter(from_pairs(weight, heads)) if heads else weight
        if bias is not None:
            made.bias = nn.Parameter(from_pairs(bias, heads)) if heads else bias
        return made

    heads, kv_heads = file.get("attention.head_count"), file.get("attention.head_count_kv")
    for index, layer in enumerate(model.model.layers):
        block, attention = f"blk.{index}", layer.self_attn
        attention.q_proj = linear(f"{block}.attn_q", heads[index])
        attention.k_proj = linear(f"{block}.attn_k", kv_heads[index])
        attention.v_proj, attention.o_proj = linear(f"{block}.attn_v"), linear(f"{block}.attn_output")
        layer.mlp.gate_proj, layer.mlp.up_proj = linear(f"{block}.ffn_gate"), linear(f"{block}.ffn_up")
        layer.mlp.down_proj = linear(f"{block}.ffn_down")
        layer.input_layernorm.weight = parameter(f"{block}.attn_norm.weight")
        layer.post_attention_layernorm.weight = parameter(f"{block}.ffn_norm.weight")
    model.model.embed_tokens.weight, model.lm_head.weight = parameter("token_embd.weight"), parameter("output.weight")
    model.model.norm.weight = parameter("output_norm.weight")
    ids = token_ids(2, 24)
    assert (logits(model, ids) - logits(source, ids)).abs().max() <= 1e-5


def test_a_draft_is_the_first_layers_alone(saved: Make, export: Make, contents: Make) -> None:
    folder = saved("llama")
    draft, whole = export(folder, "exit:2", name="draft.gguf"), export(folder)
    assert (draft.architecture, draft.blocks, whole.blocks) == ("llama", 2, 6)
    one, other = contents(draft.path)[0], contents(whole.path)[0]
    # llama.cpp drafts only with the target's own vocabulary.
    assert {key: one[key] for key in one if key.startswith("tokenizer.")} == {
        key: other[key] for key in other if key.startswith("tokenizer.")
    }


def test_a_sliding_window_limits_the_context(saved: Make, export: Make, contents: Make) -> None:
    written = export(saved("mistral", sliding_window=12))
    assert written.context == contents(written.path)[0]["llama.context_length"] == 12
    assert "sliding window of 12 tokens" in written.notes[0]
    longer = export(saved("mistral", sliding_window=400))
    assert (longer.context, longer.notes) == (128, ())


def test_weights_in_bfloat16_are_rounded_once(saved: Make, export: Make, tiny_model: Make) -> None:
    """Gains are folded into bfloat16 weights in float32, and an f32 file keeps the result."""
    import torch

    from truedepth.models.gguf.file import read_gguf

    folder = saved("llama")
    model = tiny_model("llama").bfloat16()
    model.save_pretrained(folder)
    file = read_gguf(export(folder, "0 (1|2) 3-5").path)
    layers = model.model.layers[1:3]
    expected = torch.cat([layer.mlp.up_proj.weight.float() * layer.post_attention_layernorm.weight for layer in layers])
    assert torch.from_numpy(file.read("blk.1.ffn_up.weight")).equal(expected.detach())


def test_a_checkpoint_in_shards_makes_the_same_file(saved: Make, export: Make, tiny_model: Make) -> None:
    folder = saved("qwen2")
    whole = export(folder, "0 (1|2) 5").path.read_bytes()
    (folder / "model.safetensors").unlink()
    tiny_model("qwen2").save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert export(folder, "0 (1|2) 5").path.read_bytes() == whole


def test_a_wide_checkpoint_makes_the_file_that_its_plan_makes(saved: Make, export: Make, tmp_path: Path) -> None:
    from truedepth.export.hf.export import export_hf
    from truedepth.models.gguf.file import read_gguf

    folder, plan = saved("llama"), "0 1 (2|3) 4 5"
    direct = read_gguf(export(folder, plan).path)
    export_hf(str(folder), DepthPlan.parse(plan, 6), tmp_path / "wide")
    again = read_gguf(export(tmp_path / "wide", "0-4", name="again.gguf", layers=5).path)
    assert again.architecture == "deci"
    assert set(again.tensors) == set(direct.tensors)
    for name in direct.tensors:
        assert abs(again.read(name) - direct.read(name)).max() <= 1e-6
    keys = [key for key in direct.metadata if key.startswith("deci.")]
    assert {key: again.metadata[key] for key in keys} == {key: direct.metadata[key] for key in keys}
