"""The report of a finished run: one HTML file that needs no network, for a screen or for paper."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from truedepth.files import write_atomic
from truedepth.plan_file import PLAN_FILE
from truedepth.report import wording
from truedepth.report.charts import ROLE_COLOURS, frontier_chart, influence_chart, influence_is_log
from truedepth.report.comparison import comparison
from truedepth.report.picture import ROLE_WORDS, slots

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from truedepth.results import CostRecord, Results, SpeedRecord


@dataclass(frozen=True, slots=True)
class _Change:
    """A figure of the unmodified model beside that of the plan."""

    name: str
    base: str
    plan: str
    ratio: str


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a decode step and what it costs; `share` scales its bar, 0 to 1."""

    name: str
    seconds: str
    remark: str
    share: float


def write_report(results: Results, path: Path) -> None:
    """Write the report of a run as one self-contained HTML file.

    The command lines in it use the plan file in the folder of `path`.

    Raises:
        OutputError: the file cannot be written.
        PlanError: a plan in `results` is malformed.
    """
    write_atomic(path, render_report(results, path.parent / PLAN_FILE))


def render_report(results: Results, plan_file: Path) -> str:
    """The report as a string; `plan_file` is what its command lines call the plan."""
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
    return environment.get_template("report.html.j2").render(
        results=results,
        plan=results.plan.to_plan(),
        words=wording,
        rows=comparison(results),
        slots=slots(results.plan.to_plan()),
        role_words=ROLE_WORDS,
        role_colours=ROLE_COLOURS,
        speeds=_speeds(results.base_speed, results.plan_speed),
        costs=_costs(results.cost),
        commands=_commands(results, plan_file),
        created=_date(results.created),
        influence_is_log=influence_is_log(results.influence),
        frontier_chart=_data(frontier_chart(results)),
        influence_chart=_data(influence_chart(results)) if results.influence else None,
        plotly_js=_plotly_js(),
    )


def _plotly_js() -> Markup:
    from plotly.offline import get_plotlyjs

    return Markup(get_plotlyjs())  # the library's own file, which holds no closing script tag


def _data(figure: go.Figure) -> dict[str, Any]:
    """A figure as plain data; Jinja's `tojson` makes it safe inside a script element."""
    loaded: dict[str, Any] = json.loads(figure.to_json())
    return loaded


def _date(created: str) -> str:
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def _speeds(base: SpeedRecord | None, plan: SpeedRecord | None) -> tuple[_Change, ...]:
    if base is None or plan is None:
        return ()

    def change(name: str, before: float, after: float, show: Any) -> _Change:
        return _Change(name, show(before), show(after), wording.times(after / before) if before else "")

    def per_second(value: float) -> str:
        return f"{wording.number(value)} tokens/s"

    return (
        change("Decoding", base.decode_tokens_per_second, plan.decode_tokens_per_second, per_second),
        change("Reading the prompt", base.prefill_tokens_per_second, plan.prefill_tokens_per_second, per_second),
        change(
            "Time to first token",
            base.time_to_first_token_seconds,
            plan.time_to_first_token_seconds,
            wording.duration,
        ),
        change("Bytes read per token", base.bytes_per_token, plan.bytes_per_token, wording.size),
        change("Share of the memory limit", base.bandwidth_share, plan.bandwidth_share, wording.percent),
    )


def _costs(cost: CostRecord) -> tuple[_Part, ...]:
    parts = [("Everything outside the layers", cost.fixed_seconds), ("One layer", cost.layer_seconds)]
    parts += [(f"Two layers side by side, form {form}", seconds) for form, seconds in cost.pair_seconds.items()]
    longest = max(seconds for _, seconds in parts) or 1.0
    layer = cost.layer_seconds
    return tuple(
        _Part(
            name,
            wording.duration(seconds),
            f"{wording.times(seconds / layer)} one layer" if index != 1 and layer else "",
            seconds / longest,
        )
        for index, (name, seconds) in enumerate(parts)
    )


def _commands(results: Results, plan_file: Path) -> tuple[tuple[str, str], ...]:
    model, plan = shlex.quote(results.model.name), shlex.quote(plan_file.as_posix())
    return (
        ("Talk to it", f"truedepth generate {model} --plan {plan} --prompt 'Why is the sky blue?'"),
        ("Measure it again", f"truedepth measure {model} --plan {plan}"),
        ("See the plan in a terminal", f"truedepth show {plan}"),
    )
