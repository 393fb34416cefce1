"""What all charts share: colours, layout and hover text, as plotly figures.

Traces have colours that stand out on light and dark paper alike; text, grid and paper take theirs from the
style sheet of the page, so the same figure serves the light page, the dark page and print.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence

import plotly.graph_objects as go

from truedepth.report.layout import Role

FOUND = "#0f8a7e"
PEER = "#7d8891"
ROLE_COLOURS: dict[Role, str] = {
    "alone": "#4a82b4",
    "parallel": "#c96a1c",
    "merged": "#a062b8",
    "skipped": "#7d8891",
}
LOG_AXIS = {"type": "log", "tickformat": "~g", "nticks": 3}
"""With so few ticks a long axis has them at 1, 2 and 5 of a decade, and their labels stay apart."""


def new_chart(x_title: str, y_title: str) -> go.Figure:
    """A chart without traces, with a legend above it that grows as it needs."""
    axis = {"fixedrange": True, "zeroline": False, "automargin": True}
    return go.Figure(
        layout={
            "template": "none",
            "height": 460,
            "margin": {"l": 58, "r": 16, "t": 16, "b": 54},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "showlegend": True,
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "itemclick": False},
            "hovermode": "closest",
            "dragmode": False,
            "font": {"size": 13},
            "hoverlabel": {"align": "left", "font": {"size": 13}},
            "xaxis": {**axis, "title": {"text": x_title, "standoff": 12}},
            "yaxis": {**axis, "title": {"text": y_title, "standoff": 8}},
        }
    )


def hover_text(name: str, notation: str, lines: Sequence[str]) -> str:
    """Hover text; plotly reads a subset of HTML, so what comes from users is escaped."""
    wrapped = textwrap.wrap(notation, 44) or [""]
    told = "<br>".join(html.escape(line) for line in (*wrapped, *lines))
    return f"<b>{html.escape(name)}</b><br>{told}<extra></extra>"
