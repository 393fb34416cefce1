"""What training under a plan gives back, and what of that is the text's doing alone.

    python benchmarks/recovery.py TEXTS --control control --run 'layer parallelism' lp --run 'search' found-recovered

TEXTS is what `recovery_text.py` wrote. A run is a name and the folder of a finished `truedepth train recover`, with its
model and plan; the control is one of the unmodified model, with the same text and budget. Perplexity of held-out text,
of each kind and of all, is measured for

- the model as it came, whole and under the plan;
- the model after the training, under the plan;
- the control, whole and under the plan: what the text teaches without any plan.

Recovered is the share of the perplexity lost to the plan that training gave back: (plan - trained) / (plan - whole),
and the same of cross-entropy, ln(plan / trained) / ln(plan / whole), in which a ruin's first steps back count less.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import truedepth
from truedepth.evaluation.quality import compare_quality
from truedepth.measuring.bandwidth import read_bandwidth
from truedepth.measuring.machine import machine_record
from truedepth.models.loading.load import LoadedModel
from truedepth.plan import DepthPlan
from truedepth.plan.plan_file import load_plan
from truedepth.records.files import write_atomic
from truedepth.records.progress import terminal
from truedepth.training.results import TRAINING_FILE, TrainingResults

WINDOW = 256
KINDS = ("articles", "reference", "source")
Perplexities = dict[str, dict[str, float]]
"""By plan's name, then by kind of text."""


def windows_of(texts: Path, loaded: LoadedModel) -> dict[str, Tensor]:
    """Windows of each kind of text, (N, WINDOW) int64; what is left of a text is dropped."""
    tokenizer: Any = loaded.tokenizer
    found = {}
    for kind in KINDS:
        lines = (texts / f"held_out-{kind}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [tokenizer(json.loads(line)["text"], return_tensors="pt").input_ids[0].split(WINDOW) for line in lines]
        found[kind] = torch.stack([row for parts in rows for row in parts if len(row) == WINDOW])
    return found


def perplexities(loaded: LoadedModel, plans: dict[str, DepthPlan], texts: dict[str, Tensor]) -> Perplexities:
    """Of each kind of text and of all, by plan."""
    found: Perplexities = {name: {} for name in plans}
    losses, tokens = dict.fromkeys(plans, 0.0), 0
    for kind, windows in texts.items():
        judged = compare_quality(loaded.model, plans, windows, terminal)
        tokens += next(iter(judged.values())).tokens
        for name, quality in judged.items():
            found[name][kind] = quality.perplexity
            losses[name] += math.log(quality.perplexity) * quality.tokens
    for name in plans:
        found[name]["all"] = math.exp(losses[name] / tokens)
    return found


def recovered(whole: float, plan: float, trained: float) -> dict[str, float]:
    """Shares of what the plan lost that the training gave back."""
    return {
        "of_perplexity": (plan - trained) / (plan - whole),
        "of_cross_entropy": math.log(plan / trained) / math.log(plan / whole),
    }


def judge(options: argparse.Namespace) -> dict[str, Any]:
    runs = {name: Path(folder) for name, folder in options.run}
    plans = {name: load_plan(folder / "plan.yaml") for name, folder in runs.items()}
    original = truedepth.load(options.model, dtype="float32", device="cpu")
    texts = windows_of(options.texts, original)
    layers = next(iter(plans.values())).num_layers
    every = {"whole": DepthPlan.full(layers), **plans}
    before = perplexities(original, every, texts)
    del original
    control = perplexities(_trained(options.control), every, texts)
    record: dict[str, Any] = {
        "windows": {kind: len(windows) for kind, windows in texts.items()},
        "whole": {"as it came": before["whole"], "control": control["whole"], **_training(options.control)},
        "runs": {},
    }
    for name, folder in runs.items():
        trained = perplexities(_trained(folder), {name: plans[name]}, texts)[name]
        record["runs"][name] = {
            "plan": plans[name].notation,
            "prefill": plans[name].prefill,
            "stages": plans[name].effective_depth,
            "before": before[name],
            "after": trained,
            "control": control[name],
            "recovered": recovered(before["whole"]["all"], before[name]["all"], trained["all"]),
            **_training(folder),
        }
    return record


def _trained(folder: Path) -> LoadedModel:
    return truedepth.load(str(folder / "model"), dtype="float32", device="cpu")


def _training(folder: Path) -> dict[str, Any]:
    results = TrainingResults.load(folder / TRAINING_FILE)
    return {
        "training_seconds": results.seconds,
        "steps": results.steps,
        "trained_parameters": results.trained_parameters,
        "recipe": results.recipe["recover"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--control", type=Path, required=True)
    parser.add_argument("--run", nargs=2, action="append", required=True, metavar=("NAME", "FOLDER"))
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    cpu = torch.device("cpu")
    record = {"machine": machine_record(cpu, read_bandwidth(cpu)).model_dump(mode="json"), **judge(options)}
    text = json.dumps(record, indent=2)
    write_atomic(options.output, text + "\n")
    print(text)


if __name__ == "__main__":
    main()
