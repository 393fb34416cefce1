"""The report of a training: one HTML file that needs no network, for a screen or for paper."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from truedepth.records.files import write_atomic
from truedepth.report.page import chart_data, readable_date, render_page
from truedepth.report.training import labels as words
from truedepth.report.training.charts import agreement_chart, has_agreement, loss_chart

if TYPE_CHECKING:
    from truedepth.training.results import TrainingResults


def write_training_report(results: TrainingResults, path: Path) -> None:
    """Write the report of a training as one self-contained HTML file.

    Raises:
        OutputError: the file cannot be written.
    """
    write_atomic(path, render_training_report(results))


def render_training_report(results: TrainingResults) -> str:
    """The report as a string."""
    return render_page(
        "training.html.j2",
        results=results,
        words=words,
        rows=words.rows(results),
        recipe=yaml.safe_dump(results.recipe, sort_keys=False, allow_unicode=True),
        created=readable_date(results.created),
        loss_chart=chart_data(loss_chart(results)),
        agreement_chart=chart_data(agreement_chart(results)) if has_agreement(results) else None,
    )
