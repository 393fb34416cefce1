"""What every report page is made with: templates, charts as plain data, and how figures are written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from truedepth.report import format as wording

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, slots=True)
class CostPart:
    """A part of a decode step and what it costs; `share` scales its bar, 0 to 1."""

    name: str
    seconds: str
    remark: str
    share: float


def cost_parts(figures: Sequence[tuple[str, float, str]]) -> tuple[CostPart, ...]:
    """Parts from their names, seconds and remarks; the bar of the longest is whole."""
    longest = max(seconds for _, seconds, _ in figures) or 1.0
    return tuple(
        CostPart(name, wording.duration(seconds), remark, seconds / longest) for name, seconds, remark in figures
    )


def render_page(template: str, **values: Any) -> str:
    """A page that needs no network, from a template that extends `page.html.j2`."""
    environment = Environment(
        loader=PackageLoader("truedepth.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": wording.number,
        "perplexity": wording.perplexity,
        "times": wording.times,
        "percent": wording.percent,
        "size": wording.size,
        "duration": wording.duration,
    }
    return environment.get_template(template).render(plotly_js=_plotly_js(), **values)


def _plotly_js() -> Markup:
    from plotly.offline import get_plotlyjs

    return Markup(get_plotlyjs())  # the library's own file, which holds no closing script tag


def chart_data(figure: go.Figure) -> dict[str, Any]:
    """A figure as plain data; Jinja's `tojson` makes it safe inside a script element."""
    loaded: dict[str, Any] = json.loads(figure.to_json())
    return loaded


def readable_date(created: str) -> str:
    """A moment in ISO 8601 for people; anything else as it is."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"
