"""The main job on Qwen2.5-Coder-0.5B-Instruct, a second family: biases on q, k and v, 24 layers.

Give the path of its GGUF (Q4_K_M). Writes the figures of the run to benchmarks/second_family.json.

    python benchmarks/second_family.py qwen2.5-coder-0.5b.gguf
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from truedepth.cli.live import JobDisplay
from truedepth.optimize import optimize
from truedepth.recipe import Recipe

RECORD = Path(__file__).with_suffix(".json")
NAME = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"


def main(model: Path) -> None:
    recipe = Recipe(model=str(model), target="speedup", value=1.25)
    with tempfile.TemporaryDirectory() as folder, JobDisplay() as display:
        results = optimize(recipe, Path(folder), progress=display.progress, on_step=display.on_step)
    record = results.to_dict()
    record["model"]["name"] = NAME  # the path says nothing to others
    RECORD.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
