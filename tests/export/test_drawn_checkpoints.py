"""Whatever checkpoint is drawn, its exports compute what it computes under the plan, or are refused by name."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import truedepth
from truedepth.errors import TruedepthError
from truedepth.export.gguf.export import export_gguf
from truedepth.export.hf.export import export_hf
from truedepth.plan import DepthPlan

Make = Callable[..., Any]

TOKENS, HEAD_DIM, ORIGINAL = 264, 16, 32
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    "yarn with an attention factor": {
        "factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
        "attention_factor": 1.0,
    },
    "yarn with betas": {"factor": 4.0, "original_max_position_embeddings": ORIGINAL, "beta_fast": 16.0},
    "longrope": {
        "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
        "short_factor": [1.0, 1.0, 1.0, 1.0, 1.5, 1.5, 2.0, 2.0],
        "original_max_position_embeddings": ORIGINAL,
        "factor": 6.0,  # not what the lengths say
    },
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
}
BIASES: dict[str, tuple[dict[str, Any], ...]] = {
    "llama": ({}, {"attention_bias": True}, {"mlp_bias": True}, {"attention_bias": True, "mlp_bias": True}),
    "qwen3": ({}, {"attention_bias": True}),
    "smollm3": ({}, {"attention_bias": True}, {"mlp_bias": True}),
    "olmo2": ({}, {"attention_bias": True}),
}
ALWAYS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 64},
    "smollm3": {"no_rope_layer_interval": 4},
    "phi3": {"hidden_size": 64, "partial_rotary_factor": 0.5, "original_max_position_embeddings": ORIGINAL},
}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "phi3", "olmo2", "gemma2", "gemma3")
NO_FUSING, NO_GGUF = ("olmo2", "gemma2", "gemma3"), ("gemma2", "gemma3")
ONE_SCALING: dict[str, tuple[str, ...]] = {"phi3": ("default", "longrope"), "gemma3": ("default",)}
PLANS = ("0-5", "0 1 2 3 5", "0 1 (4|5)", "(0|1) (4|5)", "0 1 2 (4+5)")
"""Nothing, a layer left out, a wide layer among others, wide layers alone, and a merged layer."""


@dataclass(frozen=True)
class Drawn:
    """A checkpoint and a plan.

    Attributes:
        head: `untied`, `tied`, `own` (the configuration says tied) or `moved` (tied, stored as the head only).
        flat: saved from the model without its head.
        shards: stored in two files.
        mixed: the norms are float32, everything else bfloat16.
    """

    family: str
    rope: str
    options: dict[str, Any]
    plan: str
    head: str
    flat: bool
    shards: bool
    mixed: bool

    def refused_by_hf(self) -> list[str]:
        """What is said of a plan that no checkpoint can express; empty for one that is written."""
        return ["cannot do 'fuse'"] if "|" in self.plan and self.family in NO_FUSING else []

    def refused_by_gguf(self) -> list[str]:
        """What may be said of what llama.cpp cannot compute; empty for what is written."""
        family, options = self.family, self.options
        llama = family in ("llama", "mistral")
        fits = options["hidden_size"] == 4 * HEAD_DIM or family not in ("qwen2", "phi3", "olmo2")
        wide = "|" in self.plan and not (llama and self.plan == PLANS[3])
        mixed = wide or not fits  # in llama.cpp's architecture for all widths
        return self.refused_by_hf() + [
            words
            for words, refused in {
                "cannot do 'gguf'": family in NO_GGUF,
                "'dynamic', which llama.cpp cannot be told": self.rope == "dynamic",
                "beta_fast or beta_slow of its own": self.rope == "yarn with betas",
                "rotates 50% of each head": mixed and family == "phi3",
                "no place for 'rope_factors_long.weight'": self.rope == "longrope" and (mixed or family != "phi3"),
                "no place for 'rope_freqs.weight'": self.rope == "llama3" and not (mixed or llama),
                "no place for '.*_norm": mixed and family in ("qwen3", "olmo2"),
                "no place for '.*bias": not (mixed or llama) and any("bias" in name for name in options),
                "by a block's number": family == "smollm3" and self.plan == PLANS[4],
            }.items()
            if refused
        ]


def drawn() -> list[Drawn]:
    """Each family with each scaling of positions that it takes; everything else by chance, the same at each run."""
    chance = random.Random(20)
    cases = []
    for family in FAMILIES:
        for rope in ONE_SCALING.get(family, tuple(ROPES)):
            options = {"hidden_size": chance.choice((64, 96)), **ALWAYS.get(family, {})}
            options |= chance.choice(BIASES.get(family, ({},)))
            if rope != "default":
                rotated = int(HEAD_DIM * options.get("partial_rotary_factor", 1)) // 2
                cut = {key: v[:rotated] if isinstance(v, list) else v for key, v in ROPES[rope].items()}
                options["rope_parameters"] = {"rope_type": rope.split()[0], "rope_theta": 1e4, **cut}
            head = chance.choice(("untied", "tied", "own", "moved"))
            flat = head in ("tied", "own") and chance.random() < 0.5
            others = chance.random() < 0.3, chance.random() < 0.5
            cases.append(Drawn(family, rope, options, chance.choice(PLANS), head, flat, *others))
    return cases


def written(case: Drawn, model: Any, folder: Path) -> None:
    """The weights of a tiny model, named and stored as the case says."""
    inner = model.model if case.flat else model
    inner.save_pretrained(folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    embedding = next(name for name in tensors if "embed_tokens" in name)
    if case.head == "own":
        tensors["lm_head.weight"] = tensors[embedding] + 0.3 * torch.randn_like(tensors[embedding])
    if case.head == "moved":
        tensors["lm_head.weight"] = tensors.pop(embedding)
    if case.mixed:
        tensors = {name: tensor if "norm" in name else tensor.bfloat16() for name, tensor in tensors.items()}
    if not case.shards:
        save_file(tensors, path, {"format": "pt"})
        return
    path.unlink()
    files = {name: f"model-{len(name) % 2}.safetensors" for name in tensors}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, folder / file, {"format": "pt"})
    (folder / f"{path.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


@torch.no_grad()
def logits(model: Any, ids: Tensor) -> Tensor:
    """Of the last token: (V,)."""
    result: Tensor = model.float()(ids).logits[0, -1]
    return result


def exported(case: Drawn, refused: list[str], export: Callable[[], Any]) -> Any:
    """What an export gives; None where it is refused, as it must be, by one of these words."""
    try:
        result = export()
    except TruedepthError as error:
        assert any(re.search(words, str(error)) for words in refused), f"{case}: {error}"
        return None
    assert not refused, case
    return result


@pytest.mark.slow
def test_exports_compute_what_loads(
    tmp_path: Path, tiny_model: Make, tiny_folder: Path, token_ids: Make, llama_cpp: Make
) -> None:
    ids = token_ids(1, 40)  # longer than what positions are scaled from
    requests, expected = [], []
    for number, case in enumerate(drawn()):
        folder, back = tmp_path / f"{number}", tmp_path / f"{number}-back"
        options = {
            "vocab_size": TOKENS,
            "head_dim": HEAD_DIM,
            "tie_word_embeddings": case.head != "untied",
            **case.options,
        }
        written(case, tiny_model(case.family, **options), folder)
        for file in TOKENIZER_FILES:
            shutil.copyfile(tiny_folder / file, folder / file)
        plan = DepthPlan.parse(case.plan, 6)
        loaded = truedepth.apply(truedepth.load(str(folder), dtype="float32", device="cpu").model, plan)
        asked = logits(loaded, ids)
        if exported(case, case.refused_by_hf(), partial(export_hf, str(folder), plan, back)):
            own = AutoModelForCausalLM.from_pretrained(back, dtype=torch.float32)
            off = (logits(own, ids) - asked).abs().max()
            assert off <= (0.05 if case.mixed else 1e-3), f"{off}: {case}"
        file = partial(export_gguf, str(folder), plan, tmp_path / f"{number}.gguf", type="f32")
        if one := exported(case, case.refused_by_gguf(), file):
            assert ("context (-c)" in str(one.notes)) == (case.rope == "longrope")
            requests.append({"path": str(one.path), "prompt": ids[0].tolist(), "tokens": 1})
            expected.append((case, asked.log_softmax(-1)))
    for (case, logs), answer in zip(expected, llama_cpp(requests), strict=True):
        assert not isinstance(answer, str), f"{case}: {answer}"
        for token, log in answer[0][1].items():
            assert abs(log - logs[int(token)]) < 0.05, case
    assert len(requests) > 12  # what is refused tells nothing
