"""The charts that a person can hover, as plotly figures.

Traces have colours that stand out on light and dark paper alike; text, grid and paper take theirs from the
style sheet of the page, so the same figure serves the light page, the dark page and print.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from truedepth.plan import DepthPlan
from truedepth.report import format as wording
from truedepth.report.comparison import ComparisonRow, comparison
from truedepth.report.layout import ROLE_WORDS, Role, roles

if TYPE_CHECKING:
    from truedepth.search.results import FrontierPoint, Results

FOUND = "#0f8a7e"
PEER = "#7d8891"
ROLE_COLOURS: dict[Role, str] = {
    "alone": "#4a82b4",
    "parallel": "#c96a1c",
    "merged": "#a062b8",
    "skipped": "#7d8891",
}

_HEIGHT = 430
_MARGIN = {"l": 58, "r": 16, "t": 16, "b": 54}
_LABEL_GAP = 18  # pixels between the middles of two labels on the same side
_HOPELESS = 1e6  # ratios of perplexity that no axis should stretch to, whatever has them
_MAX_TICKS = 8
_TICK_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2)  # within a factor of 2
_TICK_DIGITS = ((1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 7), (1, 1.5, 2, 2.5, 3, 4, 5, 7), (1, 2, 5), (1,))
_PEER_SYMBOLS = ("circle", "square", "diamond", "cross", "pentagon", "hexagram", "bowtie", "hourglass")


def frontier_chart(results: Results) -> go.Figure:
    """Speedup against perplexity: the search's path as a line; the plan and the published methods as points.

    Perplexity is drawn relative to the unmodified model on the same text, on a log axis. Points far above the
    path (or infinite) are pinned to the upper edge as triangles; their labels say the figure.
    """
    rows = comparison(results)
    path = _path(results)
    bottom, top, ceiling = _ratio_range(rows, path)
    left, right = _speedup_range(rows, path)
    figure = go.Figure(layout=chart_layout("speedup of decoding", "perplexity, relative to the unmodified model"))
    figure.update_xaxes(range=[left, right], ticksuffix=wording.TIMES, nticks=8)
    figure.update_yaxes(
        type="log",
        range=[math.log10(bottom), math.log10(top)],
        **_log_ticks(bottom, top, wording.TIMES),
    )
    if path:
        figure.add_trace(_path_trace(path))
    for index, row in enumerate(sorted(rows, key=lambda row: row.kind == "plan")):  # the star lies on top
        figure.add_trace(_point(row, _PEER_SYMBOLS[index % len(_PEER_SYMBOLS)], ceiling))
    _mark_target(figure, results)
    for annotation in _labels(rows, (left, right), (bottom, top), ceiling):
        figure.add_annotation(annotation)
    return figure


def influence_chart(results: Results) -> go.Figure:
    """The block influence of each layer as bars, coloured by what the plan does with the layer."""
    figure = go.Figure(layout=chart_layout("layer", "block influence"))
    of_layer = roles(results.plan.to_plan())
    for role in ROLE_COLOURS:
        layers = [layer for layer, at in enumerate(of_layer) if at == role and layer < len(results.influence)]
        if layers:
            figure.add_trace(_bars(role, layers, [results.influence[layer] for layer in layers]))
    figure.update_layout(height=300, barmode="overlay")
    figure.update_xaxes(range=[-0.7, len(results.influence) - 0.3], dtick=5, showgrid=False)
    if influence_is_log(results.influence):
        ticks = _log_ticks(min(results.influence) / 1.2, max(results.influence))
        figure.update_yaxes(type="log", title_text="block influence (log scale)", **ticks)
    return figure


def influence_is_log(influence: Sequence[float]) -> bool:
    """Whether one layer dwarfs the rest so far that a linear axis would hide them."""
    ordered = sorted(influence)
    return bool(ordered) and ordered[0] > 0 and ordered[-1] > 12 * ordered[len(ordered) // 2]


def chart_layout(x_title: str, y_title: str) -> dict[str, Any]:
    axis = {"fixedrange": True, "zeroline": False, "ticks": "", "automargin": True}
    return {
        "template": "none",
        "height": _HEIGHT,
        "margin": _MARGIN,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "hovermode": "closest",
        "dragmode": False,
        "font": {"size": 13},
        "hoverlabel": {"align": "left", "font": {"size": 13}},
        "xaxis": {**axis, "title": {"text": x_title, "standoff": 12}},
        "yaxis": {**axis, "title": {"text": y_title, "standoff": 8}},
    }


def _path(results: Results) -> list[tuple[FrontierPoint, float]]:
    """The search's path; with each plan its perplexity over the unmodified model's on the same text."""
    num_layers = results.model.num_layers
    base = results.perplexity.base
    for point in results.frontier:
        if DepthPlan.parse(point.notation, num_layers, point.form).is_full:
            base = point.perplexity
    pairs = [(point, point.perplexity / base) for point in results.frontier]
    return [(point, ratio) for point, ratio in pairs if 0 < ratio < _HOPELESS and math.isfinite(point.speedup)]


def _ratio_range(
    rows: Sequence[ComparisonRow], path: Sequence[tuple[FrontierPoint, float]]
) -> tuple[float, float, float]:
    """Bottom and top of the log axis, and the ratio at which points too far above are pinned."""
    near = [1.0, *(ratio for _, ratio in path)]
    near += [row.ratio for row in rows if row.kind == "plan" and row.ratio < _HOPELESS]
    limit = max(8.0, 2.5 * max(near))
    shown = near + [row.ratio for row in rows if row.ratio <= limit]
    low, high = min(shown), max(*shown, 1.2)
    span = math.log10(high / low)
    top = high * 10 ** (0.10 * span)
    pinned = any(not row.ratio <= limit for row in rows)
    ceiling = high * 10 ** (0.16 * span) if pinned else math.inf
    return low / 10 ** (0.14 * span), (high * 10 ** (0.22 * span) if pinned else top), ceiling


def _log_ticks(low: float, high: float, suffix: str = "") -> dict[str, list[Any]]:
    """Round values from `low` to `high` for a log axis: the densest set that stays readable."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    sets = [[digit * 10.0**decade for decade in decades for digit in digits] for digits in _TICK_DIGITS]
    if high / low < 2:
        sets = [[step * k for k in range(int(low / step), int(high / step) + 2)] for step in _TICK_STEPS] + sets
    for ticks in sets:
        shown = [tick for tick in ticks if low <= tick <= high]
        if len(shown) <= _MAX_TICKS:
            break
    return {"tickvals": shown, "ticktext": [f"{tick:g}{suffix}" for tick in shown]}


def _is_pinned(row: ComparisonRow, ceiling: float) -> bool:
    return not row.ratio < ceiling  # also where the ratio is not a number


def _speedup_range(rows: Sequence[ComparisonRow], path: Sequence[tuple[FrontierPoint, float]]) -> tuple[float, float]:
    speeds = [row.speedup for row in rows if math.isfinite(row.speedup)] + [point.speedup for point, _ in path]
    span = max(max(speeds) - min(speeds), 0.1)
    return min(speeds) - 0.08 * span, max(speeds) + 0.08 * span


def hover_text(name: str, notation: str, lines: Sequence[str]) -> str:
    """Hover text; plotly reads a subset of HTML, so what comes from users is escaped."""
    wrapped = "<br>".join(html.escape(line) for line in textwrap.wrap(notation, 44) or [""])
    figures = "<br>".join(html.escape(line) for line in lines)
    return f"<b>{html.escape(name)}</b><br>{wrapped}<br>{figures}<extra></extra>"


def _path_trace(path: Sequence[tuple[FrontierPoint, float]]) -> go.Scatter:
    return go.Scatter(
        x=[point.speedup for point, _ in path],
        y=[ratio for _, ratio in path],
        mode="lines+markers",
        line={"color": FOUND, "width": 2},
        marker={"color": FOUND, "size": 5},
        hovertemplate=[
            hover_text(
                "on the search's path",
                point.notation,
                [
                    f"speedup {wording.times(point.speedup)} (predicted)",
                    f"perplexity {wording.perplexity(point.perplexity)} (validation), {wording.times(ratio)}",
                ],
            )
            for point, ratio in path
        ],
        name="path",
    )


def _point(row: ComparisonRow, peer_symbol: str, ceiling: float) -> go.Scatter:
    pinned = _is_pinned(row, ceiling)
    style: dict[str, Any] = {"size": 11, "color": PEER, "symbol": "triangle-up" if pinned else peer_symbol}
    if row.kind == "plan":
        style |= {"size": 19, "color": FOUND, "symbol": "star"}
    elif row.kind == "base":
        style |= {"symbol": "circle-open", "line": {"width": 2}}
    return go.Scatter(
        x=[row.speedup],
        y=[ceiling if pinned else row.ratio],
        mode="markers",
        marker=style,
        cliponaxis=False,
        hovertemplate=hover_text(
            row.name,
            row.plan.notation,
            [
                f"speedup {wording.times(row.speedup)} ({'measured' if row.measured else 'predicted'})",
                f"perplexity {wording.perplexity(row.perplexity)}, {wording.times(row.ratio)}",
                f"{wording.depth(row.plan)}{f', form {row.plan.form}' if row.plan.groups else ''}",
            ],
        ),
        name=html.escape(row.name),
    )


def _mark_target(figure: go.Figure, results: Results) -> None:
    style = {"width": 1.5, "dash": "dot", "color": PEER}
    if results.target.kind == "speedup":
        figure.add_vline(x=results.target.value, line=style, layer="below")
    elif results.target.kind == "max_perplexity_ratio":
        figure.add_hline(y=results.target.value, line=style, layer="below")


def _labels(
    rows: Sequence[ComparisonRow], x_range: tuple[float, float], y_range: tuple[float, float], ceiling: float
) -> list[dict[str, Any]]:
    """Labels beside the points, pushed apart where they would overlap.

    A worse method lies above the path, where the space to its left is free; the unmodified model and the plan
    lie on it, where the space below to the right is free.
    """
    height = _HEIGHT - _MARGIN["t"] - _MARGIN["b"]
    scale = height / math.log10(y_range[1] / y_range[0])
    sides: dict[str, list[tuple[float, ComparisonRow]]] = {"left": [], "right": []}
    for row in rows:
        across = (row.speedup - x_range[0]) / (x_range[1] - x_range[0])
        side = "left" if across > (0.4 if row.kind == "peer" else 0.8) else "right"
        shown = ceiling if _is_pinned(row, ceiling) else row.ratio
        sides[side].append((scale * math.log10(y_range[1] / shown), row))
    labels = []
    for side, members in sides.items():
        members.sort(key=lambda member: member[0])
        wanted = [pixel + (0 if row.kind == "peer" else 14) for pixel, row in members]
        for index, (pixel, row) in enumerate(members):
            if _is_pinned(row, ceiling):  # below the row of triangles
                wanted[index] = pixel + 14 + index * _LABEL_GAP
        for (pixel, row), at in zip(members, _spread(wanted, _LABEL_GAP, height), strict=True):
            labels.append(_label(row, side, at - pixel, ceiling))
    return labels


def _label(row: ComparisonRow, side: str, down: float, ceiling: float) -> dict[str, Any]:
    pinned = _is_pinned(row, ceiling)
    text = html.escape(row.name) + (f" ↑ {wording.times(row.ratio)}" if pinned else "")
    return {
        "x": row.speedup,
        "y": math.log10(ceiling if pinned else row.ratio),
        "text": f"<b>{text}</b>" if row.kind == "plan" else text,
        "xanchor": "right" if side == "left" else "left",
        "yanchor": "middle",
        "ax": -16 if side == "left" else 16,
        "ay": down,
        "showarrow": True,
        "arrowhead": 0,
        "arrowwidth": 1,
        "arrowcolor": PEER,
        "standoff": 7,
        "font": {"size": 12},
    }


def _spread(wanted: Sequence[float], gap: float, height: float) -> list[float]:
    """The positions nearest to the wanted ones (ascending, least squares) that are `gap` apart.

    They stay within 0 to `height` if they fit. Without the gaps this is isotonic regression, solved by
    pooling neighbours that are out of order.
    """
    pools: list[tuple[float, int]] = []  # mean, size
    for index, position in enumerate(wanted):
        mean, size = position - index * gap, 1
        while pools and pools[-1][0] > mean:
            other, count = pools.pop()
            mean, size = (mean * size + other * count) / (size + count), size + count
        pools.append((mean, size))
    highest = height - (len(wanted) - 1) * gap
    starts = [max(0.0, min(mean, highest)) for mean, size in pools for _ in range(size)]
    return [start + index * gap for index, start in enumerate(starts)]


def _bars(role: Role, layers: Sequence[int], influence: Sequence[float]) -> go.Bar:
    colour = ROLE_COLOURS[role]
    freed = {"color": "rgba(0,0,0,0)", "line": {"color": colour, "width": 1.5}}
    return go.Bar(
        x=layers,
        y=influence,
        width=0.74,
        marker=freed if role == "skipped" else {"color": colour},
        hovertemplate=[
            f"<b>layer {layer}</b>: {ROLE_WORDS[role]}<br>influence {wording.number(value)}<extra></extra>"
            for layer, value in zip(layers, influence, strict=True)
        ],
        name=role,
    )
