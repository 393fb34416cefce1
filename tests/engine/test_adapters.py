"""PEFT's adapters of every kind: decoded as PEFT's own `generate` decodes them, or refused by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import truedepth
from truedepth import Request
from truedepth.engine.engine import Engine
from truedepth.errors import TruedepthError, UnsupportedModelError
from truedepth.models.adapters import IN_LAYERS

peft = pytest.importorskip("peft")
KINDS = sorted(kind.value for kind in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING)

OPTIONS: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 4, "target_modules": None},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 4},
    "CARTRIDGE": {"num_virtual_tokens": 4},
    "CPT": {"cpt_token_ids": [3, 4, 5], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 3]},
    "FOURIERFT": {"n_frequency": 20},
    "IA3": {"feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm", "norm"]},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 4, "num_tasks": 2},
    "OFT": {"oft_block_size": 4, "r": 0},
    "POLY": {"n_tasks": 2, "n_skills": 2},
    "PREFIX_TUNING": {"num_virtual_tokens": 4},
    "PROMPT_TUNING": {"num_virtual_tokens": 4},
    "P_TUNING": {"num_virtual_tokens": 4, "encoder_hidden_size": 16},
    "ROAD": {"group_size": 8},
    "TRAINABLE_TOKENS": {"token_indices": [5, 9, 13], "target_modules": ["embed_tokens"]},
    "VBLORA": {"num_vectors": 8, "vector_length": 4, "target_modules": ["q_proj", "o_proj"]},
    "WAVEFT": {"n_frequency": 40},
    "XLORA": {"hidden_size": 32, "xlora_depth": 1},
}
"""What the configuration of a kind needs besides the layers that it adapts."""

PROMPTS = [[5, 9, 13, 40, 11, 7, 33], [21, 60, 13, 3, 9]]
NEW = 6


def config_of(kind: str) -> Any:
    config = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    known = inspect.signature(config).parameters
    usual = {"target_modules": ["q_proj", "v_proj", "down_proj"], "r": 4}
    options = {name: value for name, value in usual.items() if name in known}
    return config(**{**options, "task_type": "CAUSAL_LM", **OPTIONS.get(kind, {})})


def shaken(model: Any, by: float = 0.5) -> Any:
    """Make every adapter do something: fresh ones have no effect."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise, alpha=8 if "adaption_gate" in name else by)
    return model.eval()


def adapted(model: Any, config: Any) -> Any:
    torch.manual_seed(0)
    return shaken(peft.get_peft_model(model, config))


@pytest.fixture
def small(tiny_model: Callable[..., Any]) -> Callable[..., Any]:
    """A tiny model of four layers."""
    return lambda name="llama", **others: tiny_model(name, num_hidden_layers=4, **others)


def batch() -> dict[str, Any]:
    """The prompts as `generate` takes them."""
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in PROMPTS])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in PROMPTS])
    return {"input_ids": ids, "attention_mask": mask, "max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}


def generated(model: Any, **others: Any) -> list[list[int]]:
    asked = batch()
    written: Tensor = model.generate(**asked, **others)
    return written[:, asked["input_ids"].shape[1] :].tolist()


def decoded(engine: Engine, **options: Any) -> list[list[int]]:
    requests = [Request(prompt, NEW, ignore_end=True) for prompt in PROMPTS]
    return [list(result.token_ids) for result in engine.generate(requests, **options)]


def check(model: Any, plain: list[list[int]] | None) -> None:
    """The engine's tokens are those of `generate`, through each entrance; open and closed, the model computes the same.

    Args:
        plain: the tokens without adapters, which are others.
    """
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        expected, logits = generated(model), model(ids).logits
        assert expected != plain
        with Engine(model) as engine:
            assert decoded(engine) == expected
            draft = engine.draft(truedepth.DepthPlan.parse("0-1", num_layers=4))
            assert decoded(engine, drafts=[draft]) == expected
            torch.testing.assert_close(model(ids).logits, logits, atol=1e-3, rtol=1e-3)
        assert generated(model, custom_generate=truedepth.speculate("exit:2")) == expected
        assert model(ids).logits.equal(logits)


@pytest.mark.parametrize("kind", sorted(set(KINDS) & IN_LAYERS))
def test_kinds_that_act_in_the_layers(kind: str, small: Any) -> None:
    check(adapted(small(), config_of(kind)), plain=generated(small()))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - IN_LAYERS))
def test_other_kinds_are_refused_by_name(kind: str, small: Any, tmp_path: Any) -> None:
    """New kinds too, until they are known to act in the layers."""
    if kind == "XLORA":
        peft.get_peft_model(small(), config_of("LORA")).save_pretrained(tmp_path)
        OPTIONS[kind]["adapters"] = {"0": str(tmp_path)}
    model = peft.get_peft_model(small(use_cache=kind != "XLORA"), config_of(kind)).eval()
    refused = pytest.raises(UnsupportedModelError, match=f"adapter of kind {kind}.*generate.*disable_adapter")
    with refused:
        Engine(model)
    others = {"task_ids": torch.tensor([0, 1])} if kind in ("POLY", "MULTITASK_PROMPT_TUNING") else {}
    with refused:
        generated(model, custom_generate=truedepth.speculate("exit:2"), **others)
