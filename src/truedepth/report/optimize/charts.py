"""The charts of the main job: speed against quality, and the influence of each layer."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from truedepth.plan import DepthPlan
from truedepth.report.charts import FOUND, LOG_AXIS, PEER, ROLE_COLOURS, hover_text, new_chart
from truedepth.report.format import TIMES_SIGN, depth, perplexity, times
from truedepth.report.layout import ROLE_LABELS, roles
from truedepth.report.optimize.comparison import ComparisonRow, comparison

if TYPE_CHECKING:
    from truedepth.search.plan_results import FrontierPoint, Results

_HOPELESS = 1e4  # ratios of perplexity that the axis should not stretch to, whatever has them
_PEER_SYMBOLS = ("circle", "square", "diamond", "cross", "pentagon", "hexagram", "bowtie", "hourglass")


def frontier_chart(results: Results) -> go.Figure:
    """Speedup against perplexity: the search's path as a line; the plan and the published methods as points.

    Perplexity is drawn relative to the unmodified model on the same text, on a log axis. Points far above the
    path (or infinite) lie on the upper edge as triangles; the legend says the figure.
    """
    path, rows = _path(results), comparison(results)
    known = [1.0, *(ratio for _, ratio in path), *(row.ratio for row in rows if row.kind == "plan")]
    limit = min(max(8.0, 2.5 * max(known)), _HOPELESS)
    edge = 1.25 * max(row.ratio for row in rows if row.ratio <= limit)
    figure = new_chart("speedup of decoding", f"perplexity ({TIMES_SIGN} the unmodified model's)")
    figure.update_xaxes(ticksuffix=TIMES_SIGN, nticks=8)
    figure.update_yaxes(**LOG_AXIS)
    if path:
        figure.add_trace(_path_trace(path))
    for index, row in enumerate(sorted(rows, key=lambda row: row.kind == "plan")):  # the star lies on top
        shown = row.ratio <= limit  # not where it is not a number
        figure.add_trace(_point(row, row.ratio if shown else edge, _PEER_SYMBOLS[index % len(_PEER_SYMBOLS)]))
    line = {"width": 1.5, "dash": "dot", "color": PEER}
    if results.target.kind == "speedup":
        figure.add_vline(x=results.target.value, line=line, layer="below")
    elif results.target.kind == "max_perplexity_ratio":
        figure.add_hline(y=results.target.value, line=line, layer="below")
    return figure


def influence_chart(results: Results) -> go.Figure:
    """The block influence of each layer as bars, coloured by what the plan does with the layer."""
    figure = new_chart("layer", "block influence")
    of_layer = roles(results.plan.to_plan())
    for role, colour in ROLE_COLOURS.items():
        bars = [layer for layer, at in enumerate(of_layer[: len(results.influence)]) if at == role]
        if not bars:
            continue
        freed = {"color": "rgba(0,0,0,0)", "line": {"color": colour, "width": 1.5}}
        label = ROLE_LABELS[role]
        figure.add_bar(
            x=bars,
            y=[results.influence[layer] for layer in bars],
            width=0.74,
            marker=freed if role == "skipped" else {"color": colour},
            hovertemplate=f"<b>layer %{{x}}</b>: {label}<br>influence %{{y:.3~g}}<extra></extra>",
            name=label,
        )
    figure.update_layout(height=330, barmode="overlay")
    figure.update_xaxes(dtick=5, showgrid=False)
    if _dwarfed(results.influence):
        figure.update_yaxes(**LOG_AXIS, title_text="block influence (log scale)")
    return figure


def _dwarfed(influence: Sequence[float]) -> bool:
    """Whether one layer dwarfs the rest so far that a linear axis would hide them."""
    ordered = sorted(influence)
    return ordered[0] > 0 and ordered[-1] > 12 * ordered[len(ordered) // 2]


def _path(results: Results) -> list[tuple[FrontierPoint, float]]:
    """The search's path; with each plan its perplexity over the unmodified model's on the same text."""
    num_layers = results.model.num_layers
    base = results.perplexity.base
    for point in results.frontier:
        if DepthPlan.parse(point.notation, num_layers, point.form).is_full:
            base = point.perplexity
    pairs = [(point, point.perplexity / base) for point in results.frontier]
    return [(point, ratio) for point, ratio in pairs if ratio < _HOPELESS and math.isfinite(point.speedup)]


def _path_trace(path: Sequence[tuple[FrontierPoint, float]]) -> go.Scatter:
    return go.Scatter(
        x=[point.speedup for point, _ in path],
        y=[ratio for _, ratio in path],
        mode="lines+markers",
        line={"color": FOUND, "width": 2},
        marker={"size": 5},
        hovertemplate=[
            hover_text(
                "on the search's path",
                point.notation,
                [
                    f"speedup {times(point.speedup)} (predicted)",
                    f"perplexity {perplexity(point.perplexity)} (validation), {times(ratio)}",
                ],
            )
            for point, ratio in path
        ],
        name="the search's path",
    )


def _point(row: ComparisonRow, height: float, peer_symbol: str) -> go.Scatter:
    """One plan as a point; `height` is where it lies, its ratio or the upper edge."""
    far = row.ratio != height
    name = html.escape(row.name) + (f" ↑ {times(row.ratio)}" if far else "")
    style: dict[str, Any] = {"size": 11, "color": PEER, "symbol": "triangle-up" if far else peer_symbol}
    if row.kind == "plan":
        name = f"<b>{name}</b>"
        style |= {"size": 19, "color": FOUND, "symbol": "star"}
    elif row.kind == "base":
        style |= {"symbol": "circle-open", "line": {"width": 2}}
    return go.Scatter(
        x=[row.speedup],
        y=[height],
        mode="markers",
        marker=style,
        hovertemplate=hover_text(
            row.name,
            row.plan.notation,
            [
                f"speedup {times(row.speedup)} ({'measured' if row.measured else 'predicted'})",
                f"perplexity {perplexity(row.perplexity)}, {times(row.ratio)}",
                f"{depth(row.plan)}{f', form {row.plan.form}' if row.plan.groups else ''}",
            ],
        ),
        name=name,
    )
