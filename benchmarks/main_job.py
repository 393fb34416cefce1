"""The main job at 1.25x on a model, with all figures kept: benchmarks/main_job-NAME.json is a run's results.json.

    python benchmarks/main_job.py smollm2-135m smollm2-135m
    python benchmarks/main_job.py qwen2.5-coder-0.5b.gguf qwen2.5-coder-0.5b

The first is what `make demo` runs, and its record is from there. The second is Qwen2.5-Coder-0.5B-Instruct (Q4_K_M),
another family: biases on q, k and v, 24 layers.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from truedepth.cli.live import JobDisplay
from truedepth.search.plan_job import optimize
from truedepth.search.recipe import Recipe


def main(model: str, name: str) -> None:
    recipe = Recipe(model=model, target="speedup", value=1.25)
    with tempfile.TemporaryDirectory() as folder, JobDisplay() as display:
        results = optimize(recipe, Path(folder), progress=display.progress, on_step=display.on_step).to_dict()
    results["model"]["name"] = name  # a path says nothing to others
    record = Path(__file__).with_name(f"main_job-{name}.json")
    record.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:3])
