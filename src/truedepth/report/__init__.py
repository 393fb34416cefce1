"""What a finished run looks like: its report as one HTML file, and plans and tables in a terminal.

Each job has a folder with its page, its charts, its table and the sentences of both; what they share is here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from truedepth.plan import DepthPlan
    from truedepth.search.draft_results import LosslessResults
    from truedepth.search.plan_results import Results
    from truedepth.training.results import TrainingResults

    RunResults = Results | LosslessResults | TrainingResults

REPORT_FILE = "report.html"
"""What the report is called in a run's folder."""


def write_report(results: RunResults, folder: Path) -> Path:
    """Write the report of a run as one self-contained HTML file into its folder, and return where it is.

    The command lines in it name the folder as it is given here.

    Raises:
        OutputError: the file cannot be written.
        PlanError: a plan in `results` is malformed.
    """
    from truedepth.records.files import write_atomic
    from truedepth.report.lossless.page import render_lossless
    from truedepth.report.optimize.page import render_optimize
    from truedepth.report.training.page import render_training
    from truedepth.search.draft_results import LosslessResults
    from truedepth.search.plan_results import Results

    if isinstance(results, Results):
        page = render_optimize(results, folder)
    elif isinstance(results, LosslessResults):
        page = render_lossless(results, folder)
    else:
        page = render_training(results)
    path = folder / REPORT_FILE
    write_atomic(path, page)
    return path


def results_table(results: RunResults) -> RenderableType:
    """The outcome of a run for a terminal: its headline and the table of figures, readable at 80 columns."""
    from truedepth.report.lossless.table import lossless_table
    from truedepth.report.optimize.table import optimize_table
    from truedepth.report.training.table import training_table
    from truedepth.search.draft_results import LosslessResults
    from truedepth.search.plan_results import Results

    if isinstance(results, Results):
        return optimize_table(results)
    return lossless_table(results) if isinstance(results, LosslessResults) else training_table(results)


def draw_plan(plan: DepthPlan) -> RenderableType:
    """A drawing of the plan for a terminal: stages in order, groups as stacks, skipped layers struck; with a legend."""
    from truedepth.report.terminal import PlanDrawing

    return PlanDrawing(plan)
