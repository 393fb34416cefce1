"""The charts of a training, as plotly figures in the manner of `truedepth.report.charts`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from truedepth.report.charts import FOUND, PEER, ROLE_COLOURS, chart_layout, hover_text
from truedepth.report.training import words
from truedepth.report.wording import number, percent
from truedepth.training.figures import ExitFigure, exit_name

if TYPE_CHECKING:
    from truedepth.training.results import TrainingResults

_MOST_POINTS = 300
"""Of a line; more would make the page large and show no more."""

_SHALLOW, _DEEP = ROLE_COLOURS["parallel"], ROLE_COLOURS["alone"]


def loss_chart(results: TrainingResults) -> go.Figure:
    """Losses over steps, of the training and of exits: on training text thin, on held-out text bold."""
    figure = _figure("loss (nats a token)")
    _add(figure, results, "loss", words.exit_title(None, results), PEER)
    _add_exits(figure, results, "loss")
    return figure


def agreement_chart(results: TrainingResults) -> go.Figure:
    """How often each exit's most likely next token is the last layer's, over steps."""
    figure = _figure("agreement with the last layer")
    _add_exits(figure, results, "agreement")
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
    exits = words.exits(results)
    for index, layers in enumerate(exits):
        is_last = layers == results.model.num_layers
        colour = FOUND if is_last else _between(_SHALLOW, _DEEP, index / max(len(exits) - 1, 1))
        _add(figure, results, exit_name(kind, layers), words.exit_title(layers, results), colour)


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


def _between(first: str, second: str, share: float) -> str:
    """A colour between two, written #rrggbb."""
    ends = [[int(colour[place : place + 2], 16) for place in (1, 3, 5)] for colour in (first, second)]
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(*ends, strict=True))
