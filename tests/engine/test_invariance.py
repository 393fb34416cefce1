"""Where an engine says that its model is batch-invariant, verifying computes the very bits of decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from truedepth.engine.engine import Engine
from truedepth.engine.runner.caches import KVCache
from truedepth.plan import DepthPlan

VARIANT = {
    "gemma2": "the cap of the logits is PyTorch's",
    "mixtral": "layer 0's mlp",
    "qwen3_moe": "layer 0's mlp",
}
"""Families that are not batch-invariant, and what the reason begins with."""

WIDTH = {"hidden_size": 64, "head_dim": 16}
"""Heads of a size that the kernel of attention takes."""

CAPACITY = 60


def logits_in_passes(engine: Engine, ids: Tensor, passes: Sequence[int]) -> Tensor:
    """The logits of all tokens, (B, T, V), read in passes of so many tokens."""
    cache, runner = KVCache(len(ids), CAPACITY), engine.runner
    found, start = [], 0
    for count in passes:
        context = runner.context([start] * len(ids), count, CAPACITY)
        embedded = runner.embed(ids[:, start : start + count])
        hidden = runner.run(engine.target.stages, engine.target.form, embedded, context, lambda _: cache)
        found.append(runner.logits(hidden))
        start += count
    return torch.cat(found, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_a_token_is_the_same_bits_among_others(
    family_name: str, dtype: torch.dtype, tiny_model: Any, token_ids: Any
) -> None:
    """One by one, several at once, and beside other sequences."""
    model, ids = tiny_model(family_name, **WIDTH).to(dtype), token_ids(3, 48)
    with Engine(model) as engine:
        if family_name in VARIANT:
            assert (engine.rounding or "").startswith(VARIANT[family_name])
            return
        assert engine.rounding is None
        one_by_one = logits_in_passes(engine, ids, [1] * 48)
        assert logits_in_passes(engine, ids, [1, 2, 33, 5, 7]).equal(one_by_one)
        assert logits_in_passes(engine, ids[1:2], [1, 3, 4, 40]).equal(one_by_one[1:2])


@torch.no_grad()
def test_groups_of_layers_too(tiny_model: Any, token_ids: Any, plan_of: Any) -> None:
    model, ids = tiny_model("llama", **WIDTH).bfloat16(), token_ids(2, 30)
    for plan in (plan_of("0 (1|2) (3|4|5)"), plan_of("0 (1|2) 4", form="par")):
        with Engine(model, target=plan) as engine:
            one_by_one = logits_in_passes(engine, ids, [1] * 30)
            assert engine.rounding is None
            assert logits_in_passes(engine, ids, [1, 5, 24]).equal(one_by_one)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model: model.half(), "products in float16 are PyTorch's"),
        (lambda model: model.model.layers[2].mlp.register_parameter("gain", torch.nn.Parameter(torch.ones(1))), "mlp"),
        (lambda model: setattr(model.model.layers[4].mlp, "act_fn", torch.nn.Tanh()), "layer 4's mlp.act_fn (Tanh)"),
        (lambda model: setattr(model.model, "norm", torch.nn.LayerNorm(64)), "the final norm is PyTorch's"),
    ],
)
def test_what_is_not_ours_is_named(change: Any, reason: str, tiny_model: Any) -> None:
    model = tiny_model("llama", **WIDTH)
    change(model)
    with Engine(model) as engine:
        assert reason in (engine.rounding or "")


def test_heads_of_other_sizes_are_named(tiny_model: Any) -> None:
    with Engine(tiny_model("llama")) as engine:
        assert engine.rounding == "attention is PyTorch's, for heads of 8 are no multiple of 16"


def test_without_kernels(monkeypatch: pytest.MonkeyPatch, tiny_model: Any) -> None:
    monkeypatch.setattr("truedepth.engine.invariance.kernels", lambda: None)
    with Engine(tiny_model("llama", **WIDTH), target=DepthPlan.full(6)) as engine:
        assert engine.rounding == "there is no C compiler for the engine's own kernels"


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
@torch.no_grad()
def test_adapters(dora: bool, tiny_model: Any, token_ids: Any) -> None:
    """Plain LoRA calls what the engine has packed; kinds that read the weights compute with PyTorch's products."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, use_dora=dora)
    model, ids = get_peft_model(tiny_model("llama", **WIDTH), config).eval(), token_ids(3, 20)
    with Engine(model) as engine:
        if dora:
            assert "q_proj.base_layer (Linear) is PyTorch's" in (engine.rounding or "")
            return
        assert engine.rounding is None
        assert logits_in_passes(engine, ids, [1, 2, 12, 5]).equal(logits_in_passes(engine, ids, [1] * 20))


@pytest.mark.parametrize("way", ["hook", "forward"])
def test_what_users_put_on_a_module(way: str, tiny_model: Any) -> None:
    model = tiny_model("llama", **WIDTH)
    module = model.model.layers[1].mlp.up_proj
    if way == "hook":
        module.register_forward_hook(lambda _, __, output: output)
    else:
        module.forward = module.forward
    with Engine(model) as engine:
        assert (engine.rounding or "").startswith("layer 1's mlp.up_proj (Linear) is PyTorch's")
