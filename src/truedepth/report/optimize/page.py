"""The page of the main job."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from truedepth.plan.plan_file import PLAN_FILE
from truedepth.report.format import duration, per_second, percent, size, times
from truedepth.report.layout import ROLE_LABELS, slots
from truedepth.report.optimize import labels
from truedepth.report.optimize.charts import frontier_chart, influence_chart
from truedepth.report.optimize.comparison import comparison
from truedepth.report.page import CostPart, cost_parts, render_page

if TYPE_CHECKING:
    from truedepth.measuring.costs import CostRecord
    from truedepth.measuring.speed import SpeedRecord
    from truedepth.search.plan_results import Results


@dataclass(frozen=True, slots=True)
class SpeedRow:
    """A figure of the unmodified model beside that of the plan."""

    name: str
    base: str
    plan: str
    ratio: str


def render_optimize(results: Results, folder: Path) -> str:
    """The page as a string; `folder` is what its command lines call the run."""
    plan = results.plan.to_plan()
    return render_page(
        "optimize.html.j2",
        results=results,
        plan=plan,
        labels=labels,
        rows=comparison(results),
        slots=slots(plan),
        role_labels=ROLE_LABELS,
        speeds=_speeds(results.base_speed, results.plan_speed),
        costs=_costs(results.cost),
        commands=_commands(results, folder / PLAN_FILE),
        frontier_chart=frontier_chart(results),
        influence_chart=influence_chart(results) if results.influence else None,
    )


def _speeds(base: SpeedRecord | None, plan: SpeedRecord | None) -> tuple[SpeedRow, ...]:
    if base is None or plan is None:
        return ()

    def row(name: str, before: float, after: float, show: Callable[[float], str]) -> SpeedRow:
        return SpeedRow(name, show(before), show(after), times(after / before) if before else "")

    return (
        row("Decoding", base.decode_tokens_per_second, plan.decode_tokens_per_second, per_second),
        row("Reading the prompt", base.prefill_tokens_per_second, plan.prefill_tokens_per_second, per_second),
        row("Time to first token", base.time_to_first_token_seconds, plan.time_to_first_token_seconds, duration),
        row("Bytes read per token", base.bytes_per_token, plan.bytes_per_token, size),
        row("Share of the memory limit", base.bandwidth_share, plan.bandwidth_share, percent),
    )


def _costs(cost: CostRecord) -> tuple[CostPart, ...]:
    layer = cost.layer_seconds

    def part(name: str, seconds: float) -> tuple[str, float, str]:
        return name, seconds, f"{times(seconds / layer)} one layer" if layer else ""

    pairs = [part(f"Two layers side by side, form {form}", seconds) for form, seconds in cost.pair_seconds.items()]
    return cost_parts([part("Everything outside the layers", cost.fixed_seconds), ("One layer", layer, ""), *pairs])


def _commands(results: Results, plan_file: Path) -> tuple[tuple[str, str], ...]:
    model, plan = shlex.quote(results.model.name), shlex.quote(plan_file.as_posix())
    return (
        ("Talk to it", f"truedepth generate {model} --plan {plan} --prompt 'Why is the sky blue?'"),
        ("Measure it again", f"truedepth measure {model} --plan {plan}"),
        ("See the plan in a terminal", f"truedepth show {plan}"),
    )
