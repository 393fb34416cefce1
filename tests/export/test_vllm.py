"""vLLM serves what `export hf` writes. `make test-vllm` runs these in an environment of their own."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import truedepth.models.modeling_truedepth  # noqa: F401  (registers the wide models)
from truedepth.export.hf.export import export_hf
from truedepth.models.rewire import apply
from truedepth.plan import DepthPlan

PROCESS = Path(__file__).parents[2] / "benchmarks" / "vllm_process.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: run 'make test-vllm'"),
    pytest.mark.skipif(not PROCESS.exists(), reason="benchmarks/ is not part of the source distribution"),
]

WIDE_PLAN = "0 (1|3) 4 5"
NEW_TOKENS = 24
# vLLM's attention on a CPU wants heads of 32 numbers or more.
SHAPE = {"hidden_size": 128, "intermediate_size": 192, "head_dim": 32, "max_position_embeddings": 256}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {}),
    "phi3": ("phi3", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "smollm3": ("smollm3", {}),
}

WEIGHT_LEVELS = 63
"""Not 127: a processor with AVX2 alone adds two products of 8 bits in 16, and what does not fit is cut off."""


def vllm_tokens(folder: Path, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    """Greedy tokens of each prompt, by vLLM in processes of its own, which gives up by itself where it cannot start."""
    spec = importlib.util.spec_from_file_location("vllm_process", PROCESS)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.VllmProcess(sys.executable, folder, enforce_eager=True, max_model_len=256, **options) as vllm:
        tokens: list[list[int]] = vllm.answer(prompts, NEW_TOKENS)["tokens"]
    return tokens


def own_tokens(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    """The same by transformers."""
    model.generation_config.eos_token_id = None
    outputs = [
        model.generate(torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
        for ids in prompts
    ]
    return [output[0, len(ids) :].tolist() for output, ids in zip(outputs, prompts, strict=True)]


@pytest.fixture
def exported(tmp_path: Path, tiny_checkpoint: Callable[..., Any]) -> Callable[..., tuple[Path, Any]]:
    """`exported("qwen3", plan)`: the folder of an exported tiny model, and the model itself."""

    def make(name: str, plan: DepthPlan) -> tuple[Path, Any]:
        family, overrides = VARIANTS[name]
        source, model = tiny_checkpoint(family, **SHAPE, **overrides)
        export_hf(str(source), plan, tmp_path / "output")
        return tmp_path / "output", model

    return make


def quantise(folder: Path) -> None:
    """The projections of a checkpoint as int8, a scale for each row; states are rounded to int8 as they come."""
    for shard in folder.glob("*.safetensors"):
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in load_file(shard).items():
            tensors[name] = tensor
            if name.endswith("_proj.weight"):
                scale = tensor.abs().amax(1, keepdim=True) / WEIGHT_LEVELS  # (rows, 1)
                tensors |= {name: (tensor / scale).round().to(torch.int8), f"{name}_scale": scale}
        save_file(tensors, shard, metadata={"format": "pt"})
    rounding = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**rounding, "strategy": "channel", "dynamic": False},
        "input_activations": {**rounding, "strategy": "token", "dynamic": True},
    }
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }
    (folder / "config.json").write_text(json.dumps(config))


def round_like_int8(model: Any) -> None:
    """Make the projections of a model compute in float32 what int8 would."""

    def round_input(module: torch.nn.Module, states: tuple[torch.Tensor]) -> torch.Tensor:
        scale = states[0].abs().amax(-1, keepdim=True) / 127  # (B, T, 1)
        return (states[0] / scale).round() * scale

    for name, module in model.named_modules():
        if name.endswith("_proj"):
            scale = module.weight.detach().abs().amax(1, keepdim=True) / WEIGHT_LEVELS
            module.weight.data = (module.weight / scale).round() * scale
            module.register_forward_pre_hook(round_input)


@pytest.mark.parametrize("name", VARIANTS)
def test_vllm_writes_what_transformers_does(name: str, exported: Any, token_ids: Any) -> None:
    plan = DepthPlan.parse("0 (1|3) 2 5" if name == "smollm3" else WIDE_PLAN, 6)
    folder, model = exported(name, plan)
    prompts = [token_ids(1, length, seed=length)[0].tolist() for length in (3, 9, 20)]
    assert vllm_tokens(folder, prompts) == own_tokens(apply(model, plan), prompts)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_two_ranks_write_what_one_does(name: str, exported: Any, token_ids: Any) -> None:
    plan = DepthPlan.parse(WIDE_PLAN, 6)
    folder, model = exported(name, plan)
    prompts = [token_ids(1, length, seed=length)[0].tolist() for length in (3, 9, 20)]
    assert vllm_tokens(folder, prompts, tensor_parallel_size=2) == own_tokens(apply(model, plan), prompts)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_vllm_quantises_wide_layers(name: str, exported: Any, token_ids: Any) -> None:
    folder, _ = exported(name, DepthPlan.parse(WIDE_PLAN, 6))
    prompts = [token_ids(1, length, seed=length)[0].tolist() for length in (3, 9, 20)]
    model = AutoModelForCausalLM.from_pretrained(folder)
    round_like_int8(model)
    quantise(folder)
    for prompt, tokens in zip(prompts, vllm_tokens(folder, prompts), strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]  # (new tokens, V)
        lost = logits.amax(-1) - logits.gather(-1, torch.tensor(tokens)[:, None])[:, 0]
        # States that lie between two numbers may be rounded to either.
        assert lost.max() <= 0.01 * logits.std()


def test_a_skipping_plan_is_a_plain_model(exported: Any, token_ids: Any) -> None:
    """What `--plan exit:N` makes for vLLM's speculative decoding needs no truedepth."""
    plan = DepthPlan.parse("0-2", 6)
    folder, model = exported("qwen3", plan)
    prompts = [token_ids(1, 9)[0].tolist()]
    assert vllm_tokens(folder, prompts) == own_tokens(apply(model, plan), prompts)
