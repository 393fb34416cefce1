"""The charts of docs/results.md, from the figures that the other scripts wrote.

    python benchmarks/plots.py docs

draws what it finds beside this file: `layerskip-parsing.json`, `layerskip-source.json`, `layerskip-gsm8k.json`,
`recovery.json`, `draft_head.json`, `predicted.json` and `slow_link.json`. Needs matplotlib: pip install
'truedepth[plots]'.
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

ABOVE: dict[str, Any] = {"frameon": False, "ncols": 2, "loc": "lower center", "bbox_to_anchor": (0.5, 1.08)}
"""A legend above the title of a chart, where it hides nothing."""


def exits(record: Record, axes: list[Axes]) -> None:
    """Answers of each exit with and without the training, and what drafting at it is worth."""
    left, right = axes
    accuracy = record["accuracy"]
    for offset, (name, colour) in zip((-0.2, 0.2), (("with", GREEN), ("without", GREY)), strict=True):
        if name in accuracy:
            positions = [at + offset for at in range(len(accuracy[name]))]
            heights = [100 * share for share in accuracy[name].values()]
            bars = left.bar(positions, heights, 0.38, color=colour, label=f"{name} LayerSkip")
            left.bar_label(bars, fmt="%.0f", fontsize=8)
    left.set_xticks(range(len(accuracy["with"])), list(accuracy["with"]))
    left.set(xlabel="layers that run", ylabel="items answered right (%)", ylim=(0, 112))
    left.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    _speedups(right, record)


def agreement(record: Record, axes: list[Axes]) -> None:
    """How often each exit agrees with the last layer, before and after, and what drafting at it is worth."""
    left, right = axes
    for offset, (name, colour) in zip((-0.2, 0.2), (("before", GREY), ("after", GREEN)), strict=True):
        found = {key: own for key, own in record["held_out"][name].items() if key.startswith("agreement")}
        positions = [at + offset for at in range(len(found))]
        heights = [100 * share for share in found.values()]
        bars = left.bar(positions, heights, 0.38, color=colour, label=f"{name} training")
        left.bar_label(bars, fmt="%.0f", fontsize=8)
        left.set_xticks(range(len(found)), [key.rpartition("_")[2] for key in found])
    left.set(xlabel="layers that run", ylabel="next token as the last layer's (%)", ylim=(0, 112))
    left.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    _speedups(right, record)


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
        scale = "log" if max(heights.values()) > 1000 else "linear"  # a ruin would hide all others
        axis.set(title=name, yscale=scale, ylabel="perplexity of held-out text")
        axis.tick_params("x", labelsize=8)


def draft_head(record: Record, axes: list[Axes]) -> None:
    """Speedup by category of prompts, adaptive."""
    found = {category: ways["adaptive"]["speedup"] for category, ways in record["categories"].items()}
    _bars(axes[0], {**found, "all": record["overall"]["adaptive"]["speedup"]})
    axes[0].set_xlabel("tokens a second, over plain decoding")


def predicted(record: Record, axes: list[Axes]) -> None:
    """Tokens a second that were predicted and measured here, and the range of the prediction."""
    for axis, phase in zip(axes, ("decode", "prefill"), strict=True):
        rows = record["rows"]
        names = [f"{row['plan']}, batch {row['batch']}" for row in rows]
        positions = range(len(rows))
        foretold = [row[phase]["predicted"]["tokens_per_second"] for row in rows]
        middle = [own["value"] for own in foretold]
        ends = [[own["value"] - own["low"] for own in foretold], [own["high"] - own["value"] for own in foretold]]
        axis.errorbar(middle, positions, xerr=ends, fmt="o", color=ORANGE, capsize=3, label="predicted")
        measured = [row[phase]["measured"]["median"] for row in rows]
        axis.plot(measured, positions, "D", color=GREEN, label="measured")
        axis.set_yticks(list(positions), names)
        axis.invert_yaxis()
        axis.set(title=phase, xlabel="tokens a second", xlim=(0, None))
        axis.legend(**ABOVE)


def slow_link(record: Record, axes: list[Axes]) -> None:
    """Speedups of paired plans on two ranks by the delay of their link: measured, and predicted with its range."""
    for axis, form in zip(axes, ("lp", "par"), strict=True):
        names = [name for name in record["plans"] if name.endswith(form)]
        for name, colour in zip(names, (GREEN, ORANGE), strict=True):
            rows = [row for row in record["rows"] if row["plan"] == name]
            delays = [1e6 * row["delay_seconds"] for row in rows]
            foretold = [row["predicted"]["speedup"] for row in rows]
            lows, highs = [own["low"] for own in foretold], [own["high"] for own in foretold]
            axis.fill_between(delays, lows, highs, color=colour, alpha=0.15, linewidth=0)
            axis.plot(delays, [own["value"] for own in foretold], color=colour, label=f"{name}, predicted")
            ratios = [row["measured"]["ratio"] for row in rows]
            middle = [own["median"] for own in ratios]
            ends = [[own["median"] - own["low"] for own in ratios], [own["high"] - own["median"] for own in ratios]]
            axis.errorbar(delays, middle, yerr=ends, fmt="o", color=colour, capsize=3, label=f"{name}, measured")
        axis.set_xscale("symlog", linthresh=50)
        axis.set_xticks(delays, [f"{delay:.0f}" for delay in delays])
        axis.set(title=f"form {form}", xlabel="delay each way (\N{MICRO SIGN}s)", ylabel="speedup over unpaired")
        axis.legend(fontsize=7, **ABOVE)


def _speedups(axis: Axes, record: Record) -> None:
    ways = {name: way for name, way in record["speed"].items() if name != "transformers"}
    _bars(axis, {name: way["speedup"] for name, way in ways.items()})
    axis.set_xlabel("tokens a second, over plain decoding")


def _bars(axis: Axes, found: Mapping[str, float]) -> None:
    bars = axis.barh([name.replace("_", " ") for name in found], list(found.values()), color=GREEN)
    axis.bar_label(bars, fmt="%.2fx", padding=3, fontsize=8)
    axis.axvline(1, color=GREY, linewidth=1, linestyle=":")
    axis.set_xlim(0, 1.15 * max(found.values()))
    axis.invert_yaxis()


CHARTS: dict[str, tuple[Callable[[Record, list[Axes]], None], int]] = {
    "layerskip-parsing": (exits, 2),
    "layerskip-source": (agreement, 2),
    "layerskip-gsm8k": (agreement, 2),
    "recovery": (recovery, 3),
    "draft_head": (draft_head, 1),
    "predicted": (predicted, 2),
    "slow_link": (slow_link, 2),
}
"""By the name of the figures' file: what draws it, and into how many charts."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the charts go")
    folder = parser.parse_args().folder
    pyplot.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9})
    for name, (draw, count) in CHARTS.items():
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
