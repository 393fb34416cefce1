"""What training with LayerSkip gave: the exits' answers, what drafts at them are worth, and what the last layer paid.

    python benchmarks/layerskip.py MODEL ITEMS.jsonl --baseline OTHER --exits 6 12 18 --output layerskip.json

Items are prompts and responses, as `benchmarks/semantic_parsing.py` writes them. Printed and written are

- accuracy: the share of items whose greedy answer is the response (or has the same result: `--result "#### "` compares
  what stands behind the last such mark; `--stop` ends answers before a string), of each exit and the whole model, for
  the model and for the baseline, which was trained without LayerSkip;
- drafting: what of the drafted tokens is accepted at each exit with a fixed draft length, and with the adaptive one;
- speed: tokens a second of the whole answers, plain and drafted, and of `transformers` generate, item by item in turn,
  each the best of several runs; speedups are over the faster of the two ways to decode plainly;
- speed before: the same of the model that the training began with, if `--before` names it;
- held-out text: loss, and how often an exit's next token is the last layer's, before and after, as the training says
  in the folder of MODEL.

Drafted answers are compared with the plain ones, and a difference is an error.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from decoding_subjects import encode
from in_turn import in_turn

import truedepth
from truedepth.engine.drafts.policy import FixedPolicy
from truedepth.engine.engine import Engine
from truedepth.engine.sampling.request import Request
from truedepth.measuring.bandwidth import read_bandwidth
from truedepth.measuring.machine import machine_record
from truedepth.models.loading.load import LoadedModel
from truedepth.plan import DepthPlan
from truedepth.records.files import write_atomic
from truedepth.records.progress import terminal
from truedepth.training.results import TRAINING_FILE, TrainingResults

BATCH = 16
"""Items that are answered at once where speed is not measured."""


def read_items(path: Path, count: int, prompt: str, response: str) -> list[tuple[str, str]]:
    lines = path.read_text(encoding="utf-8").splitlines()[:count]
    return [(item[prompt], item[response]) for item in map(json.loads, lines)]


def requests(loaded: LoadedModel, items: Sequence[tuple[str, str]], new_tokens: int) -> list[Request]:
    """Prompts as messages of a chat where the tokenizer has a template."""
    return [Request(encode(loaded.tokenizer, prompt), max_new_tokens=new_tokens) for prompt, _ in items]


def is_right(text: str, response: str, result: str | None) -> bool:
    """Whether an answer is the response, or has the same result."""
    if result is None:
        return text.strip() == response
    _, mark, found = text.rpartition(result)
    return bool(mark) and found.strip() == response.rpartition(result)[2].strip()


def accuracies(
    loaded: LoadedModel, items: Sequence[tuple[str, str]], exits: Sequence[int], options: argparse.Namespace
) -> dict[str, float]:
    """Share of items answered right, by the number of layers that run."""
    layers = loaded.model.config.num_hidden_layers
    stop = () if options.stop is None else (options.stop,)
    asked = [replace(request, stop=stop) for request in requests(loaded, items, options.new_tokens)]
    found = {}
    with terminal(f"Answering with {loaded.name}", len(exits) + 1) as advance:
        for exit_layers in (*exits, layers):
            with Engine(
                loaded.model, loaded.tokenizer, target=DepthPlan.of_layers(range(exit_layers), layers)
            ) as engine:
                results = [
                    result for at in range(0, len(asked), BATCH) for result in engine.generate(asked[at : at + BATCH])
                ]
            right = sum(
                is_right(answer.text, response, options.result)
                for answer, (_, response) in zip(results, items, strict=True)
            )
            found[str(exit_layers)] = right / len(items)
            advance()
    return found


def speeds(
    loaded: LoadedModel, items: Sequence[tuple[str, str]], exits: Sequence[int], options: argparse.Namespace
) -> dict[str, Any]:
    """Tokens a second and acceptance of each way to decode, all items."""
    layers = loaded.model.config.num_hidden_layers
    asked = requests(loaded, items, options.timed_tokens)
    transformers = _transformers_seconds(loaded, asked, options)
    with Engine(loaded.model, loaded.tokenizer) as engine:
        drafts = {exit_layers: engine.draft(DepthPlan.of_layers(range(exit_layers), layers)) for exit_layers in exits}
        ways: dict[str, Callable[[Request], Any]] = {"plain": lambda request: engine.generate([request])[0]}
        for exit_layers, draft in drafts.items():
            for policy, name in (
                (FixedPolicy(options.num_speculative_tokens), f"{options.num_speculative_tokens} tokens"),
                (None, "adaptive"),
            ):
                ways[f"exit {exit_layers}, {name}"] = lambda request, draft=draft, policy=policy: engine.generate(
                    [request], drafts=[draft], policy=policy
                )[0]
        _, figures = in_turn(ways, asked, options.repeats)
    figures["transformers"] = transformers
    fastest = max(figures[name]["tokens_per_second"] for name in ("plain", "transformers"))
    for record in figures.values():
        record["speedup"] = record["tokens_per_second"] / fastest
    return figures


def held_out(model: Path) -> dict[str, dict[str, float]]:
    """The first and the last figures of held-out text, of the training that made a model."""
    history = [own.values for own in TrainingResults.load(model.parent / TRAINING_FILE).history]
    evaluated = [values for values in history if "eval_loss" in values]
    return {
        name: {key.removeprefix("eval_"): value for key, value in values.items() if "exit" in key}
        for name, values in (("before", evaluated[0]), ("after", evaluated[-1]))
    }


def _transformers_seconds(loaded: LoadedModel, asked: Sequence[Request], options: argparse.Namespace) -> dict[str, Any]:
    """Before an engine takes the weights."""
    model: Any = loaded.model
    tokens, seconds = 0, 0.0
    with torch.inference_mode(), terminal("Timing transformers", len(asked)) as advance:
        for request in asked:
            ids = torch.tensor([request.prompt_ids])
            best = float("inf")
            for _ in range(options.repeats):
                begun = time.perf_counter()
                written = model.generate(ids, max_new_tokens=options.timed_tokens, do_sample=False)
                best = min(best, time.perf_counter() - begun)
            tokens += written.shape[1] - ids.shape[1]
            seconds += best
            advance()
    return {"tokens_per_second": tokens / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the folder `model` of a finished training")
    parser.add_argument("items", type=Path)
    parser.add_argument("--baseline", help="a model that was trained alike, without LayerSkip")
    parser.add_argument("--before", help="the model that the training began with, to see what drafts were worth then")
    parser.add_argument("--exits", type=int, nargs="+", default=[6, 12, 18])
    parser.add_argument("--answer-at", type=int, nargs="*", help="exits to answer with; --exits if not given")
    parser.add_argument("--result", help="mark of the result in a response; without it, the whole response counts")
    parser.add_argument("--stop", help="answers end before this string; what is timed does not")
    parser.add_argument("--draft-length", type=int, default=8)
    parser.add_argument("--count", type=int, default=1000, help="items to answer")
    parser.add_argument("--timed", type=int, default=40, help="items to time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=160, help="of an answer that is right or wrong, at most")
    parser.add_argument("--timed-tokens", type=int, default=160, help="of an answer that is timed, at most")
    parser.add_argument("--prompt-field", default="prompt")
    parser.add_argument("--response-field", default="response")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.answer_at = options.exits if options.answer_at is None else options.answer_at
    items = read_items(options.items, options.count, options.prompt_field, options.response_field)
    cpu = torch.device("cpu")
    record: dict[str, Any] = {"items": len(items), "timed": options.timed, "threads": torch.get_num_threads()}
    record["held_out"] = held_out(options.model)
    record["machine"] = machine_record(cpu, read_bandwidth(cpu)).model_dump(mode="json")
    loaded = truedepth.load(str(options.model), dtype="float32", device="cpu")
    record["speed"] = speeds(loaded, items[: options.timed], options.exits, options)
    if options.before:
        before = truedepth.load(options.before, dtype="float32", device="cpu")
        record["speed_before"] = speeds(before, items[: options.timed], options.exits, options)
        del before
    record["accuracy"] = {"with": accuracies(loaded, items, options.answer_at, options)}
    if options.baseline:
        baseline = truedepth.load(options.baseline, dtype="float32", device="cpu")
        record["accuracy"]["without"] = accuracies(baseline, items, options.answer_at, options)
    text = json.dumps(record, indent=2)
    write_atomic(options.output, text + "\n")
    print(text)


if __name__ == "__main__":
    main()
