"""The page of a training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from truedepth.report.page import render_page
from truedepth.report.training import labels
from truedepth.report.training.charts import agreement_chart, has_agreement, loss_chart

if TYPE_CHECKING:
    from truedepth.training.results import TrainingResults


def render_training(results: TrainingResults) -> str:
    """The page as a string."""
    return render_page(
        "training.html.j2",
        results=results,
        labels=labels,
        rows=labels.rows(results),
        recipe=yaml.safe_dump(results.recipe, sort_keys=False, allow_unicode=True),
        loss_chart=loss_chart(results),
        agreement_chart=agreement_chart(results) if has_agreement(results) else None,
    )
