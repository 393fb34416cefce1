"""What a training has brought about, in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from truedepth.report.format import number, percent
from truedepth.report.terminal import bare_table
from truedepth.report.training import labels

if TYPE_CHECKING:
    from truedepth.training.results import TrainingResults


def training_table(results: TrainingResults) -> RenderableType:
    """The outcome: its headline, and figures of exits or drafted positions before and after, readable at 80 columns."""
    table = bare_table("", "loss", "agreement")
    for row in labels.rows(results):
        loss = f"{number(row.loss.first)} to {number(row.loss.last)}" if row.loss else ""
        agreement = f"{percent(row.agreement.first)} to {percent(row.agreement.last)}" if row.agreement else ""
        table.add_row(row.title, loss, agreement)
    return Group(Text(labels.headline(results), "bold"), Text(f"It took {labels.took(results)}."), Text(), table)
