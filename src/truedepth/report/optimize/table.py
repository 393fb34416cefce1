"""What the main job has found, in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from truedepth.report.format import number, percent, perplexity, times
from truedepth.report.optimize import labels
from truedepth.report.optimize.comparison import ComparisonRow, comparison
from truedepth.report.terminal import bare_table

if TYPE_CHECKING:
    from truedepth.search.plan_results import Results


def optimize_table(results: Results) -> RenderableType:
    """The outcome: its headline, and the plan beside the unmodified model and the published methods."""
    table = bare_table("", "layers", "stages", "speedup", "perplexity", "KL (nats)", "agreement")
    rows = comparison(results)
    for row in rows:
        table.add_row(*_cells(row), style="bold green" if row.kind == "plan" else "")
    parts: list[RenderableType] = [Text(labels.headline(results), "bold"), Text(_detail(results)), Text(), table]
    if not all(row.measured for row in rows):
        parts.append(Text("~ predicted by the cost model, not measured", "dim"))
    return Group(*parts)


def _detail(results: Results) -> str:
    parts = (
        labels.asked(results),
        f"Speedup: {labels.speed_range(results)}.",
        labels.credit(results),
        results.cost.note,
    )
    return " ".join(part for part in parts if part)


def _cells(row: ComparisonRow) -> tuple[Text, ...]:
    speedup = times(row.speedup)
    figures = (
        str(len(row.plan.layers_used)),
        str(row.plan.effective_depth),
        speedup if row.measured else f"~{speedup}",
        perplexity(row.perplexity),
        number(row.kl),
        percent(row.agreement, 1),
    )
    return (Text(row.name), *map(Text, figures))
