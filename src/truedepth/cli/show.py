"""`truedepth show`: print and draw a plan or a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from truedepth.cli.options import examples, form_option, json_option, prefill_option, print_json
from truedepth.errors import PlanError, UsageError
from truedepth.methods.plan_text import PLAN_FORMATS, names_a_file, read_plan
from truedepth.plan import DepthPlan, Form, Prefill
from truedepth.report import REPORT_FILE, draw_plan, results_table

if TYPE_CHECKING:
    from truedepth.report import RunResults


@click.command(
    epilog=examples(
        "truedepth show run",
        "truedepth show run --json",
        "truedepth show plan.yaml",
        "truedepth show '0-19 (20|21) (22|23) 28 29' --layers 30",
    )
)
@click.argument("target")
@click.option(
    "--layers", type=click.IntRange(min=1), metavar="N", help="Layers of the model, where TARGET does not say."
)
@form_option
@prefill_option
@json_option
def command(target: str, layers: int | None, form: Form | None, prefill: Prefill | None, as_json: bool) -> None:
    """Print and draw a plan or a finished run.

    TARGET is a finished run's folder or a plan: a plan.yaml, a notation, exit:8, or METHOD@VALUE.
    """
    results = _read_run(Path(target))
    if results is None:
        _show_plan(_read_plan(target, layers, form, prefill), as_json)
        return
    if (layers, form, prefill) != (None, None, None):
        raise UsageError(f"{target} is a finished run; leave out --layers, --form and --prefill")
    if as_json:
        print_json(results.to_dict())
    else:
        _show_run(results, Path(target))


def _read_run(folder: Path) -> RunResults | None:
    from truedepth.search.draft_results import LOSSLESS_FILE, LosslessResults
    from truedepth.search.plan_results import RESULTS_FILE, Results
    from truedepth.training.results import TRAINING_FILE, TrainingResults

    kinds: tuple[tuple[str, type[RunResults]], ...] = (
        (RESULTS_FILE, Results),
        (LOSSLESS_FILE, LosslessResults),
        (TRAINING_FILE, TrainingResults),
    )
    return next((kind.load(folder / name) for name, kind in kinds if (folder / name).exists()), None)


def _read_plan(target: str, layers: int | None, form: Form | None, prefill: Prefill | None) -> DepthPlan:
    from truedepth.plan.plan_file import load_plan

    if layers is None:
        if not names_a_file(target):
            raise UsageError(f"'{target}' does not say for how many layers it is; add that, such as --layers 32")
        if not Path(target).exists():
            raise PlanError(f"there is no '{target}'; give {PLAN_FORMATS}")
        layers = load_plan(target).num_layers
    return read_plan(target, layers, form, prefill)


def _show_plan(plan: DepthPlan, as_json: bool) -> None:
    from rich.console import Console

    if as_json:
        print_json(plan.to_dict())
        return
    click.echo(plan.notation)
    Console().print(draw_plan(plan))


def _show_run(results: RunResults, folder: Path) -> None:
    from rich.console import Console

    from truedepth.search.draft_results import LosslessResults
    from truedepth.search.plan_results import Results

    Console().print(results_table(results))
    if isinstance(results, (Results, LosslessResults)):
        record = results.plan if isinstance(results, Results) else results.best.draft
        click.echo()
        _show_plan(record.to_plan(), as_json=False)
    report = folder / REPORT_FILE
    if report.exists():
        click.echo(f"\nThe report: {report}")
