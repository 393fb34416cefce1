"""Bytes and operations of a decode step, against counts by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from truedepth.errors import UsageError
from truedepth.measuring.work import DecodeWork, PrefillWork
from truedepth.models.rewire import apply
from truedepth.plan import DepthPlan

FULL = DepthPlan.full(6)

# The tiny llama: D = 32, FFN 48, 4 heads and 2 for keys and values of 8 numbers, 64 tokens, float32.
MATRICES = 32 * 32 + 2 * 16 * 32 + 32 * 32 + 2 * 48 * 32 + 32 * 48
LAYER = 4 * (MATRICES + 2 * 32)
CACHE_TOKEN = 4 * 2 * 2 * 8
OUTSIDE = 4 * (64 * 32 + 32)
ROW = 4 * 32


def test_counts_by_hand(tiny_model: Callable[..., Any]) -> None:
    work = DecodeWork.of(tiny_model("llama"), context=10)
    layer = work.layers[3]
    assert layer.weight_bytes == LAYER
    assert layer.cache_bytes == 10 * CACHE_TOKEN
    assert layer.flops == 2 * MATRICES + 4 * 10 * 32
    assert work.outside_bytes == OUTSIDE + ROW
    assert work.outside_flops == 2 * 64 * 32
    assert work.hidden_bytes == ROW
    assert work.logits_bytes == 4 * 64
    assert work.bytes_per_token(FULL) == 6 * (LAYER + 10 * CACHE_TOKEN) + OUTSIDE + ROW


@pytest.mark.parametrize(("notation", "layers"), [("0 1 5", 3), ("0-3 (4|5)", 6), ("(0|1|2) 5", 4), ("0-3 (4+5)", 5)])
def test_only_layers_that_run_are_read(tiny_model: Callable[..., Any], notation: str, layers: int) -> None:
    plan = DepthPlan.parse(notation, 6)
    work = DecodeWork.of(tiny_model("llama"), context=10)
    assert work.bytes_per_token(plan) == layers * (LAYER + 10 * CACHE_TOKEN) + OUTSIDE + ROW


def test_a_batch_shares_the_weights(tiny_model: Callable[..., Any]) -> None:
    work = DecodeWork.of(tiny_model("llama"), context=10, batch=4)
    assert work.step_bytes(FULL) == 6 * (LAYER + 4 * 10 * CACHE_TOKEN) + OUTSIDE + 4 * ROW
    assert work.bytes_per_token(FULL) == round(work.step_bytes(FULL) / 4)
    assert work.layers[0].flops == 4 * (2 * MATRICES + 4 * 10 * 32)
    assert work.hidden_bytes == 4 * ROW


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_counts_once(tiny_model: Callable[..., Any], tied: bool) -> None:
    work = DecodeWork.of(tiny_model("llama", tie_word_embeddings=tied), context=1)
    assert work.outside_bytes == OUTSIDE + ROW


def test_dtype_counts(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")
    narrow = DecodeWork.of(model, context=10, bytes_per_value=2)
    assert narrow.bytes_per_token(FULL) == DecodeWork.of(model, context=10).bytes_per_token(FULL) // 2
    assert narrow == DecodeWork.of(model.to(torch.bfloat16), context=10)


def test_an_applied_plan_does_not_change_the_counts(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")
    before = DecodeWork.of(model, context=10)
    assert DecodeWork.of(apply(model, DepthPlan.parse("0 (1|2) 5", 6)), context=10) == before


def test_every_weight_but_the_embedding_is_read(tiny_model: Callable[..., Any], family_name: str) -> None:
    model = tiny_model(family_name, tie_word_embeddings=False)
    if family_name in ("mixtral", "qwen3_moe"):
        model.config.num_experts_per_tok = model.config.num_experts
    work = DecodeWork.of(model, context=1)
    weights = sum(tensor.nbytes for tensor in model.parameters())
    embedding = model.get_input_embeddings().weight
    cache = sum(layer.cache_bytes for layer in work.layers)
    assert work.step_bytes(FULL) - cache == weights - embedding.nbytes + embedding[0].nbytes


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_count_by_their_share(tiny_model: Callable[..., Any], family: str) -> None:
    model = tiny_model(family)  # 2 of 4 experts a token
    layer = model.model.layers[0]
    experts = sum(tensor.nbytes for tensor in layer.mlp.experts.parameters())
    others = sum(tensor.nbytes for tensor in layer.parameters()) - experts
    assert DecodeWork.of(model, context=1).layers[0].weight_bytes == others + experts * 0.5
    # Three tokens miss an expert with probability 1/8, but each computes with two.
    three = DecodeWork.of(model, context=1, batch=3).layers[0]
    assert three.weight_bytes == others + experts * 0.875
    matrices = sum(tensor.numel() for tensor in layer.parameters() if tensor.dim() > 1)
    heads = model.config.num_attention_heads * (getattr(model.config, "head_dim", None) or 8)
    assert three.flops == 3 * (2 * (matrices - experts / 4 / 2) + 4 * heads)


@pytest.mark.parametrize(
    ("family", "cached"), [("mistral", [12] * 6), ("gemma2", [8, 20] * 3), ("gemma3", [8, 8, 20] * 2)]
)
def test_a_sliding_window_bounds_the_cache(tiny_model: Callable[..., Any], family: str, cached: list[int]) -> None:
    work = DecodeWork.of(tiny_model(family), context=20)
    assert [layer.cache_bytes for layer in work.layers] == [tokens * CACHE_TOKEN for tokens in cached]


def test_cache_bytes_are_those_of_a_real_cache(tiny_model: Callable[..., Any], family_name: str) -> None:
    model = tiny_model(family_name)
    cache = model(torch.arange(3, 8)[None], use_cache=True).past_key_values
    counted = [layer.cache_bytes for layer in DecodeWork.of(model, context=5).layers]
    assert counted == [entry.keys.nbytes + entry.values.nbytes for entry in cache.layers]


def test_adapters_are_read_too(tiny_model: Callable[..., Any]) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    model = peft.get_peft_model(tiny_model("llama"), config)
    assert DecodeWork.of(model, context=1).layers[0].weight_bytes == LAYER + 4 * 2 * (32 + 32)


@pytest.mark.parametrize("wrong", [{"context": 0}, {"context": 4, "batch": 0}])
def test_wrong_numbers(tiny_model: Callable[..., Any], wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        DecodeWork.of(tiny_model("llama"), **wrong)


def test_a_prompt_by_hand(tiny_model: Callable[..., Any]) -> None:
    work = PrefillWork.of(tiny_model("llama"), prompt_tokens=10, batch=3)
    layer = work.layers[3]
    assert layer.weight_bytes == LAYER
    assert layer.cache_bytes == 3 * 10 * CACHE_TOKEN
    # Token i looks at i tokens: 55 pairs, of 4 heads of 8 numbers.
    assert layer.flops == 3 * (10 * 2 * MATRICES + 4 * 55 * 32)
    assert work.hidden_bytes == 3 * 10 * ROW
    assert work.outside_bytes == OUTSIDE + 3 * 10 * ROW
    assert work.logits_bytes == 3 * 4 * 64
    assert work.outside_flops == 3 * 2 * 64 * 32  # logits of the last token only


def test_a_prompt_of_one_token_is_a_decode_step(tiny_model: Callable[..., Any], family_name: str) -> None:
    model = tiny_model(family_name)
    prompt = PrefillWork.of(model, prompt_tokens=1, batch=2)
    step = DecodeWork.of(model, context=1, batch=2)
    assert (prompt.layers, prompt.outside_bytes, prompt.hidden_bytes) == (
        step.layers,
        step.outside_bytes,
        step.hidden_bytes,
    )


def test_a_prompt_longer_than_the_window(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("mistral")  # a window of 12
    layer = PrefillWork.of(model, prompt_tokens=20).layers[0]
    matrices = sum(tensor.numel() for tensor in model.model.layers[0].parameters() if tensor.dim() > 1)
    assert layer.cache_bytes == 20 * CACHE_TOKEN
    assert layer.flops == 20 * 2 * matrices + 4 * (sum(range(1, 12)) + 9 * 12) * 32


def test_shapes_are_enough(tiny_model: Callable[..., Any], family_name: str) -> None:
    model = tiny_model(family_name)
    counted = DecodeWork.of(model, context=20, batch=2)
    assert DecodeWork.of(model.to("meta"), context=20, batch=2) == counted


@pytest.mark.parametrize("wrong", [{"prompt_tokens": 0}, {"prompt_tokens": 4, "batch": 0}])
def test_wrong_prompts(tiny_model: Callable[..., Any], wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        PrefillWork.of(tiny_model("llama"), **wrong)
