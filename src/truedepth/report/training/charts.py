"""The charts of a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from truedepth.report.charts import FOUND, PEER, ROLE_COLOURS, new_chart
from truedepth.report.training import labels
from truedepth.training.trainer.figures import ExitFigure, exit_name, position_name

if TYPE_CHECKING:
    from truedepth.training.results import TrainingResults

_MOST_POINTS = 300
"""Of a line; more would make the page large and show no more."""

_DEPTHS = (ROLE_COLOURS["parallel"], ROLE_COLOURS["merged"], ROLE_COLOURS["alone"])
"""From the colour of the shallowest exit to that of the deepest; the last layer has one of its own."""


def loss_chart(results: TrainingResults) -> go.Figure:
    """Losses over steps, of the training, exits and drafted positions: on training text thin, on held-out text bold."""
    figure = new_chart("step", "loss (nats a token)")
    _add(figure, results, "loss", labels.exit_title(None, results), PEER)
    _add_exits(figure, results, "loss")
    _add_positions(figure, results, "loss")
    return figure


def agreement_chart(results: TrainingResults) -> go.Figure:
    """How often each exit's most likely next token, or a head's, is the last layer's, over steps."""
    figure = new_chart("step", "agreement with the last layer")
    _add_exits(figure, results, "agreement")
    _add_positions(figure, results, "agreement")
    figure.update_yaxes(range=[0, 1.03], tickformat=".0%")
    return figure


def has_agreement(results: TrainingResults) -> bool:
    """Whether there is anything for `agreement_chart` to show."""
    return any(row.agreement for row in labels.rows(results))


def _add_exits(figure: go.Figure, results: TrainingResults, kind: ExitFigure) -> None:
    last = results.model.num_layers
    exits = [layers for layers in labels.exits(results) if layers != last]
    for layers, colour in zip(exits, _depth_colours(len(exits)), strict=False):
        _add(figure, results, exit_name(kind, layers), labels.exit_title(layers, results), colour)
    if kind == "loss":  # the last layer always agrees with itself
        _add(figure, results, exit_name(kind, last), labels.exit_title(last, results), FOUND)


def _add_positions(figure: go.Figure, results: TrainingResults, kind: ExitFigure) -> None:
    positions = labels.positions(results)
    for position, colour in zip(positions, reversed(_depth_colours(len(positions))), strict=False):
        _add(figure, results, position_name(kind, position), labels.position_title(position), colour)


def _add(figure: go.Figure, results: TrainingResults, name: str, title: str, colour: str) -> None:
    """The lines of one figure: of training text, and of held-out text where there is any."""
    trained, judged = results.series(name), results.series(f"eval_{name}")
    value = "%{y:.1%}" if "agreement" in name else "%{y:.4~g}"

    def add(points: Sequence[tuple[int, float]], text: str, **style: Any) -> None:
        points = thinned(points)
        figure.add_scatter(
            x=[step for step, _ in points],
            y=[value for _, value in points],
            name=title,
            hovertemplate=f"<b>{title}, {text}</b><br>step %{{x:,}}<br>{value}<extra></extra>",
            **style,
        )

    if trained:
        line = {"color": colour, "width": 1, "dash": "dot" if judged else "solid"}
        add(trained, "training text", mode="lines", line=line, showlegend=not judged)
    if judged:
        add(judged, "held-out text", mode="lines+markers", line={"color": colour, "width": 2.5}, marker={"size": 5})


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


def _depth_colours(count: int) -> list[str]:
    """Colours from the shallowest to the deepest: so many, and at least two."""
    return list(sample_colorscale(list(_DEPTHS), max(count, 2)))
