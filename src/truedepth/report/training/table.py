"""What a training has brought about, in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from truedepth.report.format import number, percent
from truedepth.report.training import labels as words

if TYPE_CHECKING:
    from truedepth.training.results import TrainingResults


def training_table(results: TrainingResults) -> RenderableType:
    """The outcome: its headline, and figures of exits or drafted positions before and after, readable at 80 columns."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for title in ("loss", "agreement"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in words.rows(results):
        loss = f"{number(row.loss.first)} to {number(row.loss.last)}" if row.loss else ""
        agreement = f"{percent(row.agreement.first)} to {percent(row.agreement.last)}" if row.agreement else ""
        table.add_row(words.row_title(row, results), loss, agreement)
    return Group(Text(words.headline(results), "bold"), Text(f"It took {words.took(results)}."), Text(), table)
