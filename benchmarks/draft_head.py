"""What a trained head is worth, by category of prompts: drafting with it against plain decoding, in turns.

    python benchmarks/draft_head.py spec_bench.jsonl                          the head that comes with the model
    python benchmarks/draft_head.py spec_bench.jsonl --head head-run/head     another

Each prompt is answered to its end, or up to so many tokens: plainly, with a fixed number of drafted tokens, and with as
many as pay; the best time of several runs of each counts, the reading of the prompt included. Drafted answers are
compared with the plain ones, and a difference is an error. A prompt that leaves no room for the answer in the model's
context is cut at its start. The eight categories of MT-bench in Spec-Bench count as one, chat, as it reports them.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from decoding_subjects import encode, spread
from in_turn import in_turn

import truedepth
from truedepth.engine.drafts.drafts import AnyDraft
from truedepth.engine.drafts.heads.draft_head import load_head
from truedepth.engine.drafts.heads.packaged import packaged_head
from truedepth.engine.drafts.heads.trained_head import HEAD_FILES
from truedepth.engine.drafts.policy import FixedPolicy, SpeculationPolicy
from truedepth.engine.engine import Engine
from truedepth.engine.sampling.request import Request
from truedepth.engine.sampling.result import GenerationResult
from truedepth.measuring.bandwidth import read_bandwidth
from truedepth.measuring.machine import machine_record
from truedepth.records.files import write_atomic

Way = Callable[[Request], GenerationResult]

MT_BENCH = {"writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"}


def read_categories(path: Path, count: int) -> dict[str, list[str]]:
    """`count` prompts of each category, evenly from all of it."""
    found = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        found["chat" if item["category"] in MT_BENCH else item["category"]].append(item["turns"][0])
    return {category: spread(prompts, count) for category, prompts in found.items()}


def ways_of(engine: Engine, draft: AnyDraft, lengths: list[int]) -> dict[str, Way]:
    def answer(request: Request, drafts: list[AnyDraft], policy: SpeculationPolicy | None) -> GenerationResult:
        return engine.generate([request], drafts=drafts, policy=policy)[0]

    ways = {"plain": partial(answer, drafts=[], policy=None)}
    for length in lengths:
        ways[f"{length} drafted"] = partial(answer, drafts=[draft], policy=FixedPolicy(length))
    return {**ways, "adaptive": partial(answer, drafts=[draft], policy=None)}


def with_speedups(figures: dict[str, Any]) -> dict[str, Any]:
    for record in figures.values():
        record["speedup"] = record["tokens_per_second"] / figures["plain"]["tokens_per_second"]
    return figures


def overall(categories: dict[str, dict[str, Any]], tokens: dict[str, int]) -> dict[str, Any]:
    """All prompts together: the time of all over the tokens of all."""
    found: dict[str, Any] = {}
    for way in next(iter(categories.values())):
        parts = {category: figures[way] for category, figures in categories.items()}
        seconds = sum(tokens[category] / part["tokens_per_second"] for category, part in parts.items())
        drafted = sum(part["drafted"] for part in parts.values())
        accepted = sum(part["accepted"] for part in parts.values())
        found[way] = {
            "tokens_per_second": sum(tokens.values()) / seconds,
            "drafted": drafted,
            "accepted": accepted,
            "acceptance": accepted / drafted if drafted else None,
        }
    return with_speedups(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", type=Path, help="JSON lines with 'turns' and 'category'")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--head", type=Path, help="a head's folder; the one that comes with the model if not given")
    parser.add_argument("--count", type=int, default=6, help="prompts of each category")
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--length", type=int, nargs="*", default=[2], help="tokens drafted a round")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    loaded = truedepth.load(options.model, dtype="float32", device="cpu")
    folder = options.head or packaged_head(options.model)
    cpu = torch.device("cpu")
    record: dict[str, Any] = {
        "machine": machine_record(cpu, read_bandwidth(cpu)).model_dump(mode="json"),
        "model": options.model,
        "card": json.loads((folder / f"{HEAD_FILES}.json").read_text(encoding="utf-8")),
        "prompts_of_a_category": options.count,
        "new_tokens": options.new_tokens,
        "categories": {},
    }
    with Engine(loaded.model, loaded.tokenizer) as engine:
        draft = engine.draft_of(load_head(folder, loaded.model))
        ways = ways_of(engine, draft, options.length)
        room = loaded.model.config.max_position_embeddings - options.new_tokens
        tokens = {}
        for category, prompts in read_categories(options.prompts, options.count).items():
            asked = [Request(encode(loaded.tokenizer, prompt)[-room:], options.new_tokens) for prompt in prompts]
            tokens[category], figures = in_turn(ways, asked, options.repeats)
            record["categories"][category] = with_speedups(figures)
    record["overall"] = overall(record["categories"], tokens)
    text = json.dumps(record, indent=2)
    write_atomic(options.output, text + "\n")
    print(text)


if __name__ == "__main__":
    main()
