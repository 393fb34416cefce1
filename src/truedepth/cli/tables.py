"""What `truedepth measure` prints, in one process as on several ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from truedepth.cli.options import print_json
from truedepth.plan import DepthPlan

if TYPE_CHECKING:
    from rich.table import Table

    from truedepth.evaluation.quality import Quality
    from truedepth.measuring.measurement import Measurement
    from truedepth.measuring.on_ranks import RanksMeasurement
    from truedepth.measuring.speed import Comparison
    from truedepth.measuring.timer import Spread

UNMODIFIED = "unmodified"


def compared(plan: DepthPlan) -> dict[str, DepthPlan]:
    """The unmodified model and, if it is another, the plan, by the names that they are printed with."""
    full = DepthPlan.full(plan.num_layers)
    return {UNMODIFIED: full} if plan.is_full else {UNMODIFIED: full, "plan": plan}


def print_measurement(
    model: str,
    measurement: Measurement | RanksMeasurement,
    qualities: Mapping[str, Quality],
    tables: Sequence[Table],
    *,
    as_json: bool,
) -> None:
    """All of a measurement as JSON, or as tables; qualities by plan, if they were judged."""
    from rich.console import Console

    if as_json:
        report = {"model": model, **measurement.to_dict()}
        for name, own in qualities.items():
            report["plans"][name]["quality"] = asdict(own)
        print_json(report)
        return
    console = Console()
    for table in [*tables, *([_quality_table(qualities)] if qualities else [])]:
        console.print(table)


def _quality_table(qualities: Mapping[str, Quality]) -> Table:
    """A column for each plan, a row for each figure."""
    from truedepth.report.format import number, percent, perplexity

    tokens = next(iter(qualities.values())).tokens
    table = figures_table("Quality against the unmodified model", qualities, caption=f"{tokens} scored tokens.")
    table.add_row("perplexity", *(perplexity(own.perplexity) for own in qualities.values()))
    table.add_row("KL divergence, nats", *(number(own.kl) for own in qualities.values()))
    table.add_row("same most likely token", *(percent(own.agreement) for own in qualities.values()))
    return table


def figures_table(title: str, columns: Iterable[str], *, rows: str = "", caption: str | None = None) -> Table:
    """A table without rows yet: what a row is of on the left, its figures on the right."""
    from rich.table import Table

    table = Table(rows, title=title, caption=caption)
    for name in columns:
        table.add_column(name, justify="right")
    return table


def comparison_table(title: str, note: str, comparison: Comparison) -> Table:
    """A column for each plan of a comparison, and no rows; the caption ends with `note`."""
    caption = (
        f"Medians of {len(comparison.runs[comparison.baseline])} runs, lowest to highest in brackets. "
        f"Batch {comparison.batch}, {comparison.prompt_tokens} prompt tokens, {comparison.new_tokens} new tokens{note}"
    )
    return figures_table(title, comparison.runs, caption=caption)


def add_speeds(table: Table, comparison: Comparison) -> None:
    """Rows of a table that `comparison_table` made."""
    speeds = comparison.speeds.values()
    table.add_row("decode, tokens/s", *(spread(own.decode_tokens_per_second) for own in speeds))
    table.add_row("speed ratio", *(spread(own, digits=2) for own in comparison.ratios.values()))
    table.add_row("prefill, tokens/s", *(spread(own.prefill_tokens_per_second) for own in speeds))


def spread(spread: Spread, *, factor: float = 1.0, digits: int = 1) -> str:
    low, middle, high = (factor * value for value in (spread.low, spread.median, spread.high))
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"
