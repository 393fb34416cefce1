"""Exported checkpoints in vLLM: the same tokens as transformers, and what pairs bring on two ranks.

    python benchmarks/vllm_serving.py --vllm-python .venv-vllm/bin/python --prompts spec_bench.jsonl

Equality: SmolLM2-135M with late layers in pairs, float32, exported; greedy tokens of some prompts in vLLM against
those of `transformers` under the same plan, which stops at no end of text either. vLLM runs as it comes (compiled),
uncompiled, in two pipeline stages, and as the target of its own speculative decoding, with the first layers as the
draft.

Speed: a random model of SmolLM2's size with an even number of heads (`ranks.py` has the same) on two ranks, unpaired
and with pairs that save 21 % and 40 % of the stages, in turns; those whose turn it is not stand still. The ranks are of
one node, where vLLM's all-reduces go through shared memory if the processor has AVX-512, and of two nodes as on two
machines, over gloo.

Figures go to vllm_serving.json beside this script.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import ranks
import torch
from decoding_subjects import encode
from greedy_tokens import differences, greedy
from vllm_process import VllmProcess

from truedepth.export.hf.export import export_hf
from truedepth.measuring.bandwidth import read_bandwidth
from truedepth.measuring.machine import machine_record
from truedepth.methods.layer_parallel import LayerParallel
from truedepth.methods.plan_text import read_plan
from truedepth.models.loading.embedded import DEFAULT
from truedepth.models.loading.load import load
from truedepth.models.rewire import apply
from truedepth.records.files import write_atomic


def equality(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    loaded = load(DEFAULT, dtype="float32", device="cpu")
    layers = loaded.model.config.num_hidden_layers
    lines = options.prompts.read_text(encoding="utf-8").splitlines()
    asked = [encode(loaded.tokenizer, json.loads(line)["turns"][0]) for line in lines[: options.count]]
    plan = LayerParallel(depth=layers - 5, end=layers - 2).plan(layers)
    draft = read_plan("exit:8", layers)
    export_hf(DEFAULT, plan, folder / "paired", dtype="float32")
    export_hf(DEFAULT, draft, folder / "draft", dtype="float32")
    apply(loaded.model, plan)
    expected = greedy(loaded.model, asked, options.tokens)
    speculative = {"method": "draft_model", "model": str(folder / "draft"), "num_speculative_tokens": 3}
    ways: dict[str, dict[str, Any]] = {
        "uncompiled": {"enforce_eager": True},
        "compiled": {},
        # On a CPU, vLLM 0.32 makes what a later stage receives into only where it compiles, whatever the model.
        "two pipeline stages": {"pipeline_parallel_size": 2},
        "drafted": {"speculative_config": speculative, "enforce_eager": True},
    }
    found = {}
    for name in options.ways or ways:
        with VllmProcess(options.vllm_python, folder / "paired", **ways[name]) as vllm:
            got = vllm.answer(asked, options.tokens)["tokens"]
        other = differences(loaded.model, asked, expected, got)
        found[name] = {"equal": len(asked) - len(other), "different": other}
        print(f"{name}: {len(asked) - len(other)} of {len(asked)} prompts have the same tokens", flush=True)
    return {
        "plan": plan.notation,
        "draft": draft.notation,
        "prompts": len(asked),
        "tokens": options.tokens,
        "ways": found,
    }


def speed(folder: Path, nodes: int, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of each plan on two ranks, by rounds in which all take turns; ratios within a round."""
    folder.mkdir()
    ranks.save(folder / "source", options.layers)
    plans = {name: plan for name, plan in ranks.plans(options.layers).items() if plan.form == "lp"}
    prompt = list(range(3, 3 + ranks.PROMPT_TOKENS))
    seconds: dict[str, list[float]] = {name: [] for name in plans}
    with ExitStack() as opened:
        running = {}
        for number, (name, plan) in enumerate(plans.items()):
            export_hf(str(folder / "source"), plan, folder / f"plan-{number}")
            process = VllmProcess(
                options.vllm_python,
                folder / f"plan-{number}",
                nodes=nodes,
                tensor_parallel_size=2,
                enforce_eager=True,
            )
            running[name] = opened.enter_context(process)
            process.pause()
        for turn in range(options.rounds + 1):  # the first does not count
            for name in plans if turn % 2 else reversed(plans):
                running[name].resume()
                took = running[name].answer([prompt], options.speed_tokens)["seconds"]
                running[name].pause()
                if turn:
                    seconds[name].append(took)
    found = {}
    for name, plan in plans.items():
        ratios = [full / own for full, own in zip(seconds["unpaired"], seconds[name], strict=True)]
        found[name] = {
            "plan": plan.notation,
            "stages": plan.effective_depth,
            "tokens_per_second": options.speed_tokens / median(seconds[name]),
            "ratio": {"median": median(ratios), "low": min(ratios), "high": max(ratios)},
        }
        print(
            f"{nodes} nodes, {name:10} {found[name]['tokens_per_second']:6.1f} tokens/s, {median(ratios):.2f}x",
            flush=True,
        )
    return {"nodes": nodes, "ranks": 2, "rounds": options.rounds, "new_tokens": options.speed_tokens, "plans": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", required=True, help="an interpreter that has vLLM and truedepth")
    parser.add_argument("--prompts", type=Path, help="Spec-Bench as JSON lines; without it only speed is measured")
    parser.add_argument("--count", type=int, default=20, help="prompts to compare")
    parser.add_argument("--tokens", type=int, default=32, help="tokens to compare")
    parser.add_argument("--ways", nargs="*", help="ways to run vLLM, by name; all if not given")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--speed-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    cpu = torch.device("cpu")
    record: dict[str, Any] = {"machine": machine_record(cpu, read_bandwidth(cpu)).model_dump(mode="json")}
    with tempfile.TemporaryDirectory() as temporary:
        if options.prompts:
            record["equality"] = equality(Path(temporary), options)
        record["speed"] = [speed(Path(temporary) / f"{nodes}-nodes", nodes, options) for nodes in (1, 2)]
    write_atomic(options.output, json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
