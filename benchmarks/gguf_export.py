"""Exported GGUF files in stock llama.cpp: the same tokens as transformers, and how fast they decode.

    python benchmarks/gguf_export.py --cache FOLDER --llama-python PYTHON

Four files of a model: all layers (`full`), late layers in pairs (`paired`), the same layers left out (`skipped`), and
the first layers alone (`draft`).

Equality: float32 files and attention, greedy tokens in llama.cpp against those of transformers under the same plan.
Speed: decoding of all files in turns, and of the full one in llama.cpp's own speculative mode, with the draft file and
with the skipped one. Layers that were not trained to be the last draft badly: give a model that was, and its exit.

llama.cpp comes in the package `xllamacpp`, which may be installed for another interpreter. FOLDER keeps the files.
Figures go to gguf_export.json beside this script.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from decoding_subjects import BUILT_IN, encode
from greedy_tokens import differences, greedy
from llama_cpp import LlamaProcess, is_installed

from truedepth.export.gguf.export import export_gguf
from truedepth.measuring.bandwidth import read_bandwidth
from truedepth.measuring.machine import machine_record
from truedepth.methods.layer_parallel import LayerParallel
from truedepth.methods.plan_text import read_plan
from truedepth.models.loading.embedded import DEFAULT
from truedepth.models.loading.load import LoadedModel, load
from truedepth.models.loading.source import open_source
from truedepth.models.rewire import apply
from truedepth.plan import DepthPlan
from truedepth.records.files import write_atomic
from truedepth.records.progress import terminal

PROMPTS = (
    *BUILT_IN,
    "Write a Python function that returns the n-th Fibonacci number.",
    "Name three uses of a paper clip.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Exported GGUF files in stock llama.cpp: tokens and speed.")
    parser.add_argument("--cache", type=Path, required=True, help="folder for the GGUF files")
    parser.add_argument("--llama-python", required=True, help="an interpreter that has xllamacpp")
    parser.add_argument("--model", default=DEFAULT)
    parser.add_argument("--draft", default="exit:8", help="the draft's plan")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--tokens", type=int, default=32, help="tokens to compare")
    parser.add_argument("--types", nargs="+", default=["f32", "q8_0"], help="types to time")
    parser.add_argument("--speed-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    if not is_installed(options.llama_python):
        parser.error(f"xllamacpp is not installed for {options.llama_python}")
    options.cache.mkdir(parents=True, exist_ok=True)
    loaded = load(options.model, dtype="float32", device="cpu")
    plans = plans_of(loaded.model.config.num_hidden_layers, options.draft)
    asked = [encode(loaded.tokenizer, text) for text in PROMPTS[: options.prompts]]
    found = {
        "model": options.model,
        "machine": machine_record(torch.device("cpu"), read_bandwidth(torch.device("cpu"))).model_dump(),
        "xllamacpp": _version_of_llama(options.llama_python),
        "plans": {name: plan.notation for name, plan in plans.items()},
        "equality": equality(loaded, plans, asked, options),
        "speed": {kind: speed(plans, kind, asked, options) for kind in options.types},
    }
    write_atomic(options.output, json.dumps(found, indent=2) + "\n")
    print(json.dumps({key: found[key] for key in ("equality", "speed")}, indent=2))


def plans_of(layers: int, draft: str) -> dict[str, DepthPlan]:
    """The plans by name. Pairs take a fourth of the layers, up to two before the last."""
    paired = LayerParallel(depth=layers - layers // 8, end=layers - 2).plan(layers)
    return {
        "full": DepthPlan.full(layers),
        "paired": paired,
        "skipped": DepthPlan.of_layers([s.layers[0] for s in paired.stages if len(s.layers) == 1], layers),
        "draft": read_plan(draft, layers),
    }


def equality(
    loaded: LoadedModel, plans: dict[str, DepthPlan], asked: Sequence[list[int]], options: argparse.Namespace
) -> dict[str, Any]:
    """How many prompts get the same tokens, by plan, and where the others differ first."""
    found: dict[str, Any] = {}
    for name, plan in plans.items():
        apply(loaded.model, plan)
        expected = greedy(loaded.model, asked, options.tokens)
        process = LlamaProcess(*_command(_file(plan, name, "f32", options), options), float32_attention=True)
        try:
            answered = [process.tokens(prompt, options.tokens) for prompt in asked]
        finally:
            process.close()
        other = differences(loaded.model, asked, expected, answered)
        equal = len(asked) - len(other)
        found[name] = {"equal": equal, "prompts": len(asked), "tokens": options.tokens, "different": other}
    return found


def speed(
    plans: dict[str, DepthPlan], kind: str, asked: Sequence[list[int]], options: argparse.Namespace
) -> dict[str, Any]:
    """Tokens a second of each file, the median over rounds in which all take turns, and of all ways' ratios to full."""
    files = {name: _file(plan, name, kind, options) for name, plan in plans.items()}
    processes = {name: LlamaProcess(*_command(path, options)) for name, path in files.items()}
    for name in ("draft", "skipped"):
        processes[f"full, drafted by {name}"] = LlamaProcess(*_command(files["full"], options), draft=files[name])
    rates: dict[str, list[float]] = {name: [] for name in processes}
    drafts = {name: {"draft_n": 0, "draft_n_accepted": 0} for name in processes}
    try:
        with terminal(f"Timing {kind}", options.rounds) as advance:
            for turn in range(options.rounds + 1):  # the first warms up
                prompt = asked[turn % len(asked)]
                for name, process in processes.items():
                    answer = process.answer(prompt, options.speed_tokens)
                    if turn:
                        rates[name].append(1000 * (answer["predicted_n"] - 1) / answer["predicted_ms"])
                        drafts[name] = {key: count + answer.get(key, 0) for key, count in drafts[name].items()}
                if turn:
                    advance()
    finally:
        for process in processes.values():
            process.close()
    return {
        name: {
            "tokens_per_second": median(measured),
            "slowest": min(measured),
            "fastest": max(measured),
            "times_full": median(one / base for one, base in zip(measured, rates["full"], strict=True)),
            "drafted": drafts[name]["draft_n"],
            "accepted": drafts[name]["draft_n_accepted"],
        }
        for name, measured in rates.items()
    }


def _command(path: Path, options: argparse.Namespace) -> tuple[str, Path, int, int]:
    """What starts llama.cpp with a file: interpreter, file, threads and context."""
    return options.llama_python, path, torch.get_num_threads(), 256 + max(options.tokens, options.speed_tokens)


def _file(plan: DepthPlan, name: str, kind: str, options: argparse.Namespace) -> Path:
    path: Path = options.cache / f"{Path(options.model).name}-{name}-{kind}.gguf"
    if not path.exists():
        export_gguf(open_source(options.model, "gguf"), plan, path, type=kind, progress=terminal)
    return path


def _version_of_llama(python: str) -> str:
    code = "from importlib.metadata import version; print(version('xllamacpp'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
