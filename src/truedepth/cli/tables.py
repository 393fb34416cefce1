"""Tables that commands print for one process as for several ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from truedepth.evaluation.quality import Quality
    from truedepth.measuring.speed import Comparison
    from truedepth.measuring.timer import Spread

UNMODIFIED = "unmodified"


def quality_table(qualities: dict[str, Quality]) -> Table:
    """A column for each plan, a row for each figure."""
    from rich.table import Table

    from truedepth.report.format import number, percent, perplexity

    tokens = next(iter(qualities.values())).tokens
    table = Table("", title="Quality against the unmodified model", caption=f"{tokens} scored tokens.")
    for name in qualities:
        table.add_column(name, justify="right")
    table.add_row("perplexity", *(perplexity(own.perplexity) for own in qualities.values()))
    table.add_row("KL divergence, nats", *(number(own.kl) for own in qualities.values()))
    table.add_row("same most likely token", *(percent(own.agreement) for own in qualities.values()))
    return table


def comparison_table(title: str, note: str, comparison: Comparison) -> Table:
    """A column for each plan of a comparison, and no rows; the caption ends with `note`."""
    from rich.table import Table

    caption = (
        f"Medians of {len(comparison.runs[comparison.baseline])} runs, lowest to highest in brackets. "
        f"Batch {comparison.batch}, {comparison.prompt_tokens} prompt tokens, {comparison.new_tokens} new tokens{note}"
    )
    table = Table("", title=title, caption=caption)
    for name in comparison.runs:
        table.add_column(name, justify="right")
    return table


def add_speeds(table: Table, comparison: Comparison) -> None:
    """Rows of a table that `comparison_table` made."""
    speeds = comparison.speeds.values()
    table.add_row("decode, tokens/s", *(spread(own.decode_tokens_per_second) for own in speeds))
    table.add_row("speed ratio", *(spread(own, digits=2) for own in comparison.ratios.values()))
    table.add_row("prefill, tokens/s", *(spread(own.prefill_tokens_per_second) for own in speeds))


def spread(spread: Spread, *, factor: float = 1.0, digits: int = 1) -> str:
    low, middle, high = (factor * value for value in (spread.low, spread.median, spread.high))
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"
