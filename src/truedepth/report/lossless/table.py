"""What the search for a draft has found, in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from truedepth.report.format import number, times
from truedepth.report.lossless import labels
from truedepth.report.terminal import bare_table

if TYPE_CHECKING:
    from truedepth.search.draft_results import LosslessResults

_MOST_ROWS = 8
"""Plans in the table; the report has all."""


def lossless_table(results: LosslessResults) -> RenderableType:
    """The outcome: its headline, and the best drafts, readable at 80 columns."""
    table = bare_table("draft", "depth", "vocabulary", "agrees", "needs", "length", "tokens/s", "speedup")
    plain = 1 / results.costs.plain_seconds()
    table.add_row("no draft", "", "", "", "", "", f"~{number(plain)}", times(1.0))
    for row in labels.rows(results)[:_MOST_ROWS]:
        table.add_row(*_cells(row, plain), style="bold green" if row.is_best and results.pays else "")
    parts = (labels.finding(results), labels.exactness(results), labels.advice(results))
    return Group(
        Text(labels.headline(results), "bold"),
        Text(" ".join(part for part in parts if part)),
        Text(),
        table,
        Text("needs: the agreement from which it pays; ~ expected from agreement and costs, not timed", "dim"),
    )


def _cells(row: labels.DraftRow, plain: float) -> tuple[Text, ...]:
    best, draft, timed = row.candidate.best, row.candidate.draft, row.timed
    length = best.num_speculative_tokens if timed is None else timed.num_speculative_tokens or "adaptive"
    figures = (
        str(draft.to_plan().effective_depth),
        labels.vocabulary(draft),
        labels.share(row.candidate.agreement),
        labels.share(row.candidate.break_even),
        str(length),
        number(timed.tokens_per_second) if timed else f"~{number(best.tokens_per_second)}",
        times(timed.speedup) if timed else f"~{times(best.tokens_per_second / plain)}",
    )
    return (Text(labels.title(draft)), *map(Text, figures))
