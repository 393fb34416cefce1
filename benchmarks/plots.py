"""The pictures of docs/results.md, from the figures that the other scripts wrote.

    python benchmarks/plots.py docs

draws what it finds beside this file: `layerskip-parsing.json`, `layerskip-source.json`, `layerskip-gsm8k.json`,
`recovery.json` and `draft_head.json`. Needs matplotlib: pip install 'truedepth[plots]'.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

GREEN, ORANGE, GREY = "#0f8a7e", "#c96a1c", "#b4bdc3"
Record = Mapping[str, Any]


def exits(record: Record, axes: list[Axes]) -> None:
    """Answers of each exit with and without the training, and what drafting at it is worth."""
    left, right = axes
    accuracy = record["accuracy"]
    for offset, (name, colour) in zip((-0.2, 0.2), (("with", GREEN), ("without", GREY)), strict=True):
        if name in accuracy:
            places = [at + offset for at in range(len(accuracy[name]))]
            bars = left.bar(places, [100 * share for share in accuracy[name].values()], 0.38, color=colour, label=name)
            left.bar_label(bars, fmt="%.0f", fontsize=8)
    left.set_xticks(range(len(accuracy["with"])), list(accuracy["with"]))
    left.set(xlabel="layers that run", ylabel="items answered right (%)", ylim=(0, 112))
    left.legend(frameon=False, ncols=2, loc="upper left")
    ways = {name: way for name, way in record["speed"].items() if name != "transformers"}
    _bars(right, {name: way["speedup"] for name, way in ways.items()})
    right.set_xlabel("tokens a second, over the fastest plain decoding")


def recovery(record: Record, axes: list[Axes]) -> None:
    """Perplexity under each plan: before, after, and what the control makes of it."""
    whole, runs = record["whole"], record["runs"]
    for axis, (name, run) in zip(axes, runs.items(), strict=True):
        heights = {
            "whole": whole["as it came"]["all"],
            "whole,\ncontrol": whole["control"]["all"],
            "plan": run["before"]["all"],
            "plan,\ncontrol": run["control"]["all"],
            "plan,\ntrained": run["after"]["all"],
        }
        bars = axis.bar(list(heights), list(heights.values()), color=[GREY, GREY, ORANGE, ORANGE, GREEN])
        axis.bar_label(bars, fmt="%.1f", fontsize=8)
        axis.set(title=name, yscale="log", ylabel="perplexity of held-out text")
        axis.tick_params("x", labelsize=8)


def draft_head(record: Record, axes: list[Axes]) -> None:
    """Speedup by category of prompts, adaptive."""
    found = {category: ways["adaptive"]["speedup"] for category, ways in record["categories"].items()}
    _bars(axes[0], {**found, "all": record["overall"]["adaptive"]["speedup"]})
    axes[0].set_xlabel("tokens a second, over plain decoding")


def _bars(axis: Axes, found: Mapping[str, float]) -> None:
    bars = axis.barh([name.replace("_", " ") for name in found], list(found.values()), color=GREEN)
    axis.bar_label(bars, fmt="%.2fx", padding=3, fontsize=8)
    axis.axvline(1, color=GREY, linewidth=1, linestyle=":")
    axis.set_xlim(0, 1.15 * max(found.values()))
    axis.invert_yaxis()


PICTURES: dict[str, tuple[Callable[[Record, list[Axes]], None], int]] = {
    "layerskip-parsing": (exits, 2),
    "layerskip-source": (exits, 2),
    "layerskip-gsm8k": (exits, 2),
    "recovery": (recovery, 3),
    "draft_head": (draft_head, 1),
}
"""By the name of the figures' file: what draws it, and into how many charts."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the pictures go")
    folder = parser.parse_args().folder
    pyplot.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9})
    for name, (draw, count) in PICTURES.items():
        source = Path(__file__).with_name(f"{name}.json")
        if source.exists():
            figure, axes = pyplot.subplots(
                1, count, figsize=(3.6 * max(count, 2), 3.2), squeeze=False, layout="constrained"
            )
            draw(json.loads(source.read_text(encoding="utf-8")), list(axes[0]))
            figure.savefig(folder / f"results-{name}.png", dpi=160)
            print(folder / f"results-{name}.png")


if __name__ == "__main__":
    main()
