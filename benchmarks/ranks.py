"""Plans on two ranks of this machine, in turns: tokens a second, and all-reduces counted.

The model has SmolLM2-135M's depth and size but heads that two ranks can share: 30 layers, 512 wide, 8 heads, 4 of them
for keys and values, random weights, made once. Each rank is one process with one thread; they talk over gloo.

    python benchmarks/ranks.py results.json            # starts the two ranks itself

Every plan is decoded by the engine that `truedepth generate` uses; its figure is the median over rounds, and its ratio
the median of the ratios to the unpaired model within a round. What a step takes besides all-reduces is timed too: the
same step with sums that are not sent, on both ranks at once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM

from truedepth import DepthPlan, Engine, apply
from truedepth.engine.sampling.request import Request
from truedepth.measuring.machine import processor_name
from truedepth.methods.layer_parallel import LayerParallel
from truedepth.models.loading.embedded import DEFAULT
from truedepth.models.loading.load import load
from truedepth.parallel.launch import joined_ranks, started_ranks
from truedepth.parallel.partition import pieces_of
from truedepth.parallel.ranks import GroupRanks, Traffic
from truedepth.parallel.split import split
from truedepth.plan import Form
from truedepth.records.files import write_atomic

PROMPT_TOKENS = 32
RANKS = 2


class Switched(GroupRanks):
    """Ranks that can keep their sums and gathers to themselves, to see what a step takes without communication."""

    sending = True

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return super().sum(tensor) if self.sending else tensor

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return super().gather(tensor) if self.sending else tensor.expand(self.size, *tensor.shape)


def plans(layers: int) -> dict[str, DepthPlan]:
    """Unpaired, and pairs that save 21 % and 40 % of the stages, up to two layers before the last; in both forms."""
    found = {"unpaired": DepthPlan.full(layers)}
    forms: tuple[Form, ...] = ("lp", "par")
    for share in (0.21, 0.40):
        for form in forms:
            method = LayerParallel(depth=layers - round(share * layers), end=layers - 2, form=form)
            found[f"-{share:.0%} {form}"] = method.plan(layers)
    return found


def model(layers: int, width: int = 512, vocabulary: int = 49152) -> Any:
    """The same random weights on every rank and at every call."""
    config = AutoConfig.for_model(
        "llama",
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=width // 8,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def part(whole: Any, plan: DepthPlan, ranks: GroupRanks) -> Any:
    """What one rank holds of a model, under a plan."""
    split(whole, pieces_of(plan, ranks.rank, ranks.size), ranks)
    for parameter in whole.parameters():
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)  # lets go of what is cut off
    return whole if plan.is_full else apply(whole, plan)


def save(folder: Path, layers: int) -> None:
    """The model as a checkpoint, with the embedded model's tokenizer, whose vocabulary is as large."""
    model(layers).save_pretrained(folder)
    load(DEFAULT).tokenizer.save_pretrained(folder)


def decode(engine: Engine, ranks: Switched, new_tokens: int, *, sending: bool) -> tuple[float, Traffic]:
    """Seconds a decode step, and what was communicated by a whole answer."""
    ranks.wait()
    ranks.sending, before = sending, ranks.traffic.copy()
    request = Request(tuple(range(3, 3 + PROMPT_TOKENS)), max_new_tokens=new_tokens, ignore_end=True)
    (result,) = engine.generate([request])
    return result.timings.plain / (new_tokens - 1), ranks.traffic.since(before)


def all_reduce_seconds(width: int, repeats: int = 200) -> float:
    """The median all-reduce of one token's hidden states, one after the other."""
    hidden, seconds = torch.zeros(1, 1, width), []
    for _ in range(repeats):
        begun = time.perf_counter()
        dist.all_reduce(hidden)
        seconds.append(time.perf_counter() - begun)
    return median(seconds)


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    with joined_ranks("cpu") as joining, ExitStack() as opened:
        ranks = Switched(joining.device)
        chosen = plans(options.layers)
        shape = (options.layers, options.width, options.vocabulary)
        engines = {
            name: opened.enter_context(Engine(part(model(*shape), plan, ranks))) for name, plan in chosen.items()
        }
        seconds: dict[str, list[float]] = {name: [] for name in chosen}
        alone: dict[str, list[float]] = {name: [] for name in chosen}
        traffic: dict[str, Traffic] = {}
        reduces = []
        for turn in range(options.rounds + 1):  # the first does not count
            for name in chosen if turn % 2 else reversed(chosen):
                step, traffic[name] = decode(engines[name], ranks, options.new_tokens, sending=True)
                own, _ = decode(engines[name], ranks, options.new_tokens, sending=False)
                if turn:
                    seconds[name].append(step)
                    alone[name].append(own)
            reduces.append(all_reduce_seconds(options.width))
        if ranks.rank == 0:
            report(options, chosen, seconds, alone, traffic, median(reduces))


def report(
    options: argparse.Namespace,
    chosen: dict[str, DepthPlan],
    seconds: dict[str, list[float]],
    alone: dict[str, list[float]],
    traffic: dict[str, Traffic],
    reduce: float,
) -> None:
    base = seconds["unpaired"]
    figures = {}
    for name, plan in chosen.items():
        ratios = [full / own for full, own in zip(base, seconds[name], strict=True)]
        figures[name] = {
            "plan": plan.to_dict(),
            "tokens_per_second": 1 / median(seconds[name]),
            "ratio": {"median": median(ratios), "low": min(ratios), "high": max(ratios)},
            "step_seconds": median(seconds[name]),
            "step_seconds_without_communication": median(alone[name]),
            "counted": asdict(traffic[name]),
            "all_reduces_expected": plan.all_reduces * options.new_tokens,  # the prompt is one pass
        }
        print(
            f"{name:10} {figures[name]['tokens_per_second']:6.1f} tokens/s, {median(ratios):.2f}x "
            f"({min(ratios):.2f} to {max(ratios):.2f}), {traffic[name].all_reduces // options.new_tokens} all-reduces "
            f"a token, {median(alone[name]) * 1e3:.1f} of {median(seconds[name]) * 1e3:.1f} ms without them"
        )
        if traffic[name].all_reduces != figures[name]["all_reduces_expected"]:
            raise SystemExit(f"{name}: {traffic[name].all_reduces} all-reduces were counted, not as the formula says")
    print(f"an all-reduce of {options.width} numbers by itself: {reduce * 1e6:.0f} us")
    found = {
        "processor": processor_name(),
        "ranks": RANKS,
        "backend": "gloo",
        "threads_a_rank": 1,
        "torch": torch.__version__,
        **{name: getattr(options, name) for name in ("layers", "width", "vocabulary", "new_tokens", "rounds")},
        "all_reduce_seconds": reduce,
        "plans": figures,
    }
    write_atomic(options.output, json.dumps(found, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if started_ranks() == RANKS:
        run(options)
        return
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    sys.exit(subprocess.run([*launcher, *sys.argv], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode)


if __name__ == "__main__":
    main()
