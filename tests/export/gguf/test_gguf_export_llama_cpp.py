"""Stock llama.cpp loads exported files and computes what transformers computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import truedepth
from truedepth.methods.plan_text import read_plan
from truedepth.models.loading.embedded import DEFAULT, embedded_model

Make = Callable[..., Any]

# Architecture, plan, and options of a tiny model.
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "0-5", {}),
    "llama skipped": ("llama", "0 1 4 5", {}),
    "llama in groups": ("deci", "0 1 (2|3) 4 5", {}),
    "llama all in pairs": ("llama", "(0|1) (2|3) (4|5)", {}),
    "llama with biases": ("llama", "0 2 4", {"attention_bias": True, "mlp_bias": True}),
    "llama with biases in groups": ("deci", "0 (1|2|3)", {"attention_bias": True, "mlp_bias": True}),
    "mistral in groups": ("deci", "0 (1|2)", {"sliding_window": None}),
    "qwen2": ("qwen2", "0 1 3", {}),
    "qwen2 in groups": ("deci", "0 1 (2|3) 4 5", {}),
    "qwen2 all in pairs": ("deci", "(0|1) (2|3) (4|5)", {}),
    "qwen3": ("qwen3", "0 2 4 5", {}),
    "smollm3": ("smollm3", "0 1 5 3", {"no_rope_layer_interval": 4}),
    "smollm3 in groups": ("deci", "0 (1|2) 4", {"no_rope_layer_interval": 4}),
    "phi3": ("phi3", "0 1 4", {}),
    "phi3 in groups": ("deci", "0 (1|2) 4", {}),
    "olmo2": ("olmo2", "0 2 4", {}),
    "llama with llama3 scaling in groups": (
        "deci",
        "0 (1|2) 4",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "qwen2 with yarn": (
        "qwen2",
        "0-3",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
}


@pytest.mark.slow
def test_tiny_models_have_the_same_probabilities(saved: Make, export: Make, token_ids: Make, llama_cpp: Make) -> None:
    """Every architecture that is written, at the first token after a prompt of 40. llama.cpp's attention rounds to
    float16 on the way; a mistake in a layout changes the logarithms by whole numbers."""
    import shutil

    import torch

    prompt = token_ids(1, 40)
    requests, expected = [], []
    for number, (name, (architecture, plan, options)) in enumerate(CASES.items()):
        folder = saved(name.split()[0], hidden_size=64, head_dim=16, **options)
        written = export(folder, plan, name=f"{number}.gguf")
        assert written.architecture == architecture, name
        model = truedepth.load(str(folder)).model
        truedepth.apply(model, read_plan(plan, 6))
        with torch.no_grad():
            expected.append(model(prompt).logits[0, -1].log_softmax(-1))  # (V,)
        requests.append({"path": str(written.path), "prompt": prompt[0].tolist(), "tokens": 1})
        shutil.rmtree(folder)
    for name, answer, logs in zip(CASES, llama_cpp(requests), expected, strict=True):
        for token, log in answer[0][1].items():
            assert abs(log - logs[int(token)]) < 1e-2, name


@pytest.mark.slow
@pytest.mark.skipif(not embedded_model(DEFAULT).installed, reason=f"{DEFAULT} is not installed")  # type: ignore[union-attr]
def test_smollm2_writes_the_same_tokens(tmp_path: Path, llama_cpp: Make) -> None:
    from truedepth.export.gguf.export import export_gguf

    loaded = truedepth.load(DEFAULT)
    plans = ["0-19 (20|21) (22|23) 25-29", "exit:8"]
    prompts = [loaded.tokenizer(text, return_tensors="pt") for text in ("The history of science",)]
    requests, expected = [], []
    for number, notation in enumerate(plans):
        plan = read_plan(notation, 30)
        path = export_gguf(DEFAULT, plan, tmp_path / f"{number}.gguf", type="f32").path
        truedepth.apply(loaded.model, plan)
        for prompt in prompts:
            requests.append({"path": str(path), "prompt": prompt.input_ids[0].tolist(), "tokens": 8})
            tokens = loaded.model.generate(**prompt, max_new_tokens=8, do_sample=False, eos_token_id=None)
            expected.append(tokens[0, prompt.input_ids.shape[1] :].tolist())
    assert [[token for token, _ in answer] for answer in llama_cpp(requests)] == expected
