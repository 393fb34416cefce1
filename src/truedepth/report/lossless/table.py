"""What the search for a draft has found, in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from truedepth.report.format import number, times
from truedepth.report.lossless import labels as words

if TYPE_CHECKING:
    from truedepth.search.lossless_results import LosslessResults

_SHOWN = 8
"""Plans in the table; the report has all."""


def lossless_table(results: LosslessResults) -> RenderableType:
    """The outcome: its headline, and the best drafts, readable at 80 columns."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("draft", no_wrap=True)
    for title in ("depth", "vocabulary", "agrees", "needs", "length", "tokens/s", "speedup"):
        table.add_column(title, justify="right", no_wrap=True)
    plain = 1 / results.costs.plain_seconds()
    table.add_row("no draft", "", "", "", "", "", f"~{number(plain)}", times(1.0))
    for row in words.rows(results)[:_SHOWN]:
        table.add_row(*_cells(row, plain), style="bold green" if row.is_best and results.pays else "")
    parts = (words.finding(results), words.advice(results))
    return Group(
        Text(words.headline(results), "bold"),
        Text(" ".join(part for part in parts if part)),
        Text(),
        table,
        Text("needs: the agreement from which it pays; ~ expected from agreement and costs, not timed", "dim"),
    )


def _cells(row: words.DraftRow, plain: float) -> tuple[Text, ...]:
    best = row.candidate.best
    draft = row.candidate.draft
    depth = str(draft.to_plan().effective_depth)
    figures = [
        depth,
        words.vocabulary(draft),
        words.share(row.candidate.agreement),
        words.share(row.candidate.break_even),
    ]
    if row.timed is None:
        figures += [
            str(best.num_speculative_tokens),
            f"~{number(best.tokens_per_second)}",
            f"~{times(best.tokens_per_second / plain)}",
        ]
    else:
        timed = row.timed
        figures += [
            str(timed.num_speculative_tokens or "adaptive"),
            number(timed.tokens_per_second),
            times(timed.speedup),
        ]
    return (Text(words.title(draft)), *map(Text, figures))
