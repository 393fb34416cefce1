"""The report of a finished run: one HTML file that needs no network, for a screen or for paper."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truedepth.plan.plan_file import PLAN_FILE
from truedepth.records.files import write_atomic
from truedepth.report import format as wording
from truedepth.report.charts import ROLE_COLOURS, frontier_chart, influence_chart, influence_is_log
from truedepth.report.comparison import comparison
from truedepth.report.layout import ROLE_WORDS, slots
from truedepth.report.page import CostPart, chart_data, cost_parts, readable_date, render_page

if TYPE_CHECKING:
    from truedepth.measuring.costs import CostRecord
    from truedepth.measuring.speed import SpeedRecord
    from truedepth.search.results import Results


@dataclass(frozen=True, slots=True)
class _Change:
    """A figure of the unmodified model beside that of the plan."""

    name: str
    base: str
    plan: str
    ratio: str


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
    return render_page(
        "report.html.j2",
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
        created=readable_date(results.created),
        influence_is_log=influence_is_log(results.influence),
        frontier_chart=chart_data(frontier_chart(results)),
        influence_chart=chart_data(influence_chart(results)) if results.influence else None,
    )


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


def _costs(cost: CostRecord) -> tuple[CostPart, ...]:
    layer = cost.layer_seconds

    def remark(seconds: float) -> str:
        return f"{wording.times(seconds / layer)} one layer" if layer else ""

    pairs = {f"Two layers side by side, form {form}": seconds for form, seconds in cost.pair_seconds.items()}
    outside = ("Everything outside the layers", cost.fixed_seconds, remark(cost.fixed_seconds))
    return cost_parts(
        [outside, ("One layer", layer, ""), *((name, seconds, remark(seconds)) for name, seconds in pairs.items())]
    )


def _commands(results: Results, plan_file: Path) -> tuple[tuple[str, str], ...]:
    model, plan = shlex.quote(results.model.name), shlex.quote(plan_file.as_posix())
    return (
        ("Talk to it", f"truedepth generate {model} --plan {plan} --prompt 'Why is the sky blue?'"),
        ("Measure it again", f"truedepth measure {model} --plan {plan}"),
        ("See the plan in a terminal", f"truedepth show {plan}"),
    )
