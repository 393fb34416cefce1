"""What every report page is made with: templates, their filters, and the bars of what a step costs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from truedepth.report.format import date, depth, duration, number, percent, perplexity, size, times

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
    return tuple(CostPart(name, duration(seconds), remark, seconds / longest) for name, seconds, remark in figures)


def render_page(template: str, **values: Any) -> str:
    """A page that needs no network, from a template that extends `page.html.j2`."""
    environment = Environment(
        loader=PackageLoader("truedepth.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (chart_data, date, depth, duration, number, percent, perplexity, size, times)
    environment.filters |= {filter_.__name__: filter_ for filter_ in filters}
    return environment.get_template(template).render(plotly_js=_plotly_js(), **values)


def _plotly_js() -> Markup:
    from plotly.offline import get_plotlyjs

    return Markup(get_plotlyjs())  # the library's own file, which holds no closing script tag


def chart_data(figure: go.Figure) -> dict[str, Any]:
    """A figure as plain data; Jinja's `tojson` makes it safe inside a script element."""
    loaded: dict[str, Any] = json.loads(figure.to_json())
    return loaded
