"""Checkpoints with wide layers against the plans that they were made of, with real weights, in `transformers`.

    python benchmarks/fused.py spec_bench.jsonl smollm2-135m qwen2.5-coder-0.5b.gguf

Each model is run under a plan that pairs late layers, and the checkpoint that `truedepth export hf` makes of it is
loaded beside it, both in float32. Written to fused.json beside this script are the largest difference of their logits,
prompts and greedy tokens both, and how many prompts have the same greedy tokens.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from decoding_subjects import encode
from greedy_tokens import differences, greedy
from transformers import AutoModelForCausalLM

from truedepth.export.hf.export import export_hf
from truedepth.methods.layer_parallel import LayerParallel
from truedepth.models.loading.load import load
from truedepth.models.rewire import apply
from truedepth.records.files import write_atomic


def compare(name: str, texts: list[str], new_tokens: int) -> dict[str, Any]:
    loaded = load(name, dtype="float32", device="cpu")
    asked = [encode(loaded.tokenizer, text) for text in texts]
    layers = loaded.model.config.num_hidden_layers
    plan = LayerParallel(depth=layers - 5, end=layers - 2).plan(layers)
    with tempfile.TemporaryDirectory() as temporary:
        written = export_hf(name, plan, Path(temporary) / "wide", dtype="float32")
        wide: Any = AutoModelForCausalLM.from_pretrained(written.path, dtype=torch.float32)
    grouped: Any = apply(loaded.model, plan)
    expected = greedy(grouped, asked, new_tokens)
    error = 0.0
    with torch.inference_mode():
        for ids, own in zip(asked, expected, strict=True):
            tokens = torch.tensor([[*ids, *own]])  # (1, T)
            error = max(error, float((grouped(tokens).logits - wide(tokens).logits).abs().max()))
    other = differences(grouped, asked, expected, greedy(wide, asked, new_tokens))
    return {
        "plan": plan.notation,
        "max_abs_logit_error": error,
        "prompts": len(asked),
        "new_tokens": new_tokens,
        "equal": len(asked) - len(other),
        "different": other,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", type=Path, help="Spec-Bench as JSON lines")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    lines = options.prompts.read_text(encoding="utf-8").splitlines()[: options.count]
    texts = [json.loads(line)["turns"][0] for line in lines]
    found = {Path(name).name: compare(name, texts, options.new_tokens) for name in options.models}
    text = json.dumps(found, indent=2)
    write_atomic(options.output, text + "\n")
    print(text)


if __name__ == "__main__":
    main()
