"""The charts of a training, as plotly figures in the manner of `truedepth.report.charts`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from truedepth.report.charts import FOUND, PEER, ROLE_COLOURS, chart_layout, hover_text
from truedepth.report.format import number, percent
from truedepth.report.training import labels as words
from truedepth.training.trainer.figures import ExitFigure, exit_name, position_name

if TYPE_CHECKING:
    from truedepth.training.results import TrainingResults

_MOST_POINTS = 300
"""Of a line; more would make the page large and show no more."""

_DEPTHS = (ROLE_COLOURS["parallel"], ROLE_COLOURS["merged"], ROLE_COLOURS["alone"])
"""Colours of the shallowest exit, of one in the middle, and of the deepest; the last layer has one of its own."""


def loss_chart(results: TrainingResults) -> go.Figure:
    """Losses over steps, of the training, exits and drafted positions: on training text thin, on held-out text bold."""
    figure = _figure("loss (nats a token)")
    _add(figure, results, "loss", words.exit_title(None, results), PEER)
    _add_exits(figure, results, "loss")
    _add_positions(figure, results, "loss")
    return figure


def agreement_chart(results: TrainingResults) -> go.Figure:
    """How often each exit's most likely next token, or a head's, is the last layer's, over steps."""
    figure = _figure("agreement with the last layer")
    _add_exits(figure, results, "agreement")
    _add_positions(figure, results, "agreement")
    figure.update_yaxes(range=[0, 1.03], tickformat=".0%")
    return figure


def has_agreement(results: TrainingResults) -> bool:
    """Whether there is anything for `agreement_chart` to show."""
    return any(row.agreement for row in words.rows(results))


def _figure(y_title: str) -> go.Figure:
    layout = chart_layout("step", y_title)
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "itemclick": False}
    return go.Figure(
        layout={**layout, "showlegend": True, "legend": legend, "margin": {**layout["margin"], "t": 64}},
    )


def _add_exits(figure: go.Figure, results: TrainingResults, kind: ExitFigure) -> None:
    last = results.model.num_layers
    exits = [layers for layers in words.exits(results) if layers != last]
    for index, layers in enumerate(exits):
        colour = _depth_colour(index / max(len(exits) - 1, 1))
        _add(figure, results, exit_name(kind, layers), words.exit_title(layers, results), colour)
    if kind == "loss":  # the last layer always agrees with itself
        _add(figure, results, exit_name(kind, last), words.exit_title(last, results), FOUND)


def _add_positions(figure: go.Figure, results: TrainingResults, kind: ExitFigure) -> None:
    positions = words.positions(results)
    for index, position in enumerate(positions):
        colour = _depth_colour(1 - index / max(len(positions) - 1, 1))
        _add(figure, results, position_name(kind, position), words.position_title(position), colour)


def _add(figure: go.Figure, results: TrainingResults, name: str, title: str, colour: str) -> None:
    """The lines of one figure: of training text, and of held-out text where there is any."""
    trained, judged = results.series(name), results.series(f"eval_{name}")
    share = "agreement" in name
    if trained:
        line = {"color": colour, "width": 1, "dash": "dot" if judged else "solid"}
        figure.add_trace(_line(thinned(trained), f"{title}, training text", line, "lines", share, not judged))
    if judged:
        line = {"color": colour, "width": 2.5}
        figure.add_trace(_line(thinned(judged), f"{title}, held-out text", line, "lines+markers", share, True))


def _line(
    points: Sequence[tuple[int, float]], title: str, line: dict[str, Any], mode: str, share: bool, legend: bool
) -> go.Scatter:
    return go.Scatter(
        x=[step for step, _ in points],
        y=[value for _, value in points],
        mode=mode,
        name=title.partition(",")[0],
        showlegend=legend,
        line=line,
        marker={"size": 5},
        hovertemplate=[
            hover_text(title, "", [f"step {step:,}", percent(value, 1) if share else number(value, 4)])
            for step, value in points
        ],
    )


def thinned(points: Sequence[tuple[int, float]], most: int = _MOST_POINTS) -> list[tuple[int, float]]:
    """At most so many points: the first and the last as they are, between them means of neighbours."""
    if len(points) <= most:
        return list(points)
    inner = points[1:-1]
    groups = [
        inner[index * len(inner) // (most - 2) : (index + 1) * len(inner) // (most - 2)] for index in range(most - 2)
    ]
    means = [(group[len(group) // 2][0], sum(value for _, value in group) / len(group)) for group in groups]
    return [points[0], *means, points[-1]]


def _depth_colour(share: float) -> str:
    """The colour at a share of the way through `_DEPTHS`, written #rrggbb."""
    place = min(int(share * 2), 1)
    ends = [[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in _DEPTHS[place : place + 2]]
    within = share * 2 - place
    return "#" + "".join(f"{round(a + within * (b - a)):02x}" for a, b in zip(*ends, strict=True))
