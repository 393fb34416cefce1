"""`truedepth show`: print and draw a plan or a finished run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from truedepth.cli.options import examples, json_option, print_json, resolve_plan
from truedepth.errors import PlanError, UsageError
from truedepth.plan import FORMS, PREFILLS, DepthPlan, Form, Prefill
from truedepth.report import REPORT_FILE

if TYPE_CHECKING:
    from truedepth.results import Results

_NOTATION = re.compile(r"[\d\s()|+-]+")


@click.command(
    epilog=examples(
        "truedepth show run",
        "truedepth show run --json",
        "truedepth show plan.yaml",
        "truedepth show '0-19 (20|21) (22|23) 28 29' --layers 30",
    )
)
@click.argument("target")
@click.option("--layers", type=click.IntRange(min=1), metavar="N", help="Layers of the model, for a notation.")
@click.option("--form", type=click.Choice(FORMS), help="How groups run.  [default: as in the file, else lp]")
@click.option(
    "--prefill",
    type=click.Choice(PREFILLS),
    help="What the prompt runs.  [default: as in the file, else plan]",
)
@json_option
def command(target: str, layers: int | None, form: Form | None, prefill: Prefill | None, as_json: bool) -> None:
    """Print and draw a plan or a finished run.

    TARGET is a finished run's folder, a plan.yaml, or a plan's notation.
    """
    from truedepth.results import RESULTS_FILE, Results

    folder = Path(target)
    if not (folder / RESULTS_FILE).exists():
        _show_plan(_read_plan(target, layers, form, prefill), as_json)
        return
    if (layers, form, prefill) != (None, None, None):
        raise UsageError(f"{target} is a finished run; leave out --layers, --form and --prefill")
    results = Results.load(folder / RESULTS_FILE)
    if as_json:
        print_json(results.to_dict())
    else:
        _show_run(results, folder)


def _read_plan(target: str, layers: int | None, form: Form | None, prefill: Prefill | None) -> DepthPlan:
    from truedepth.plan_file import load_plan

    if layers is None:
        if not Path(target).exists():
            if _NOTATION.fullmatch(target):
                raise UsageError(f"'{target}' is a notation; say for how many layers, such as --layers 32")
            raise PlanError(f"there is no '{target}'; give a finished run's folder, a plan.yaml, or a notation")
        layers = load_plan(target).num_layers
    return resolve_plan(target, layers, form, prefill)


def _show_plan(plan: DepthPlan, as_json: bool) -> None:
    from rich.console import Console

    from truedepth.report.terminal import draw_plan

    if as_json:
        print_json(plan.to_dict())
        return
    click.echo(plan.notation)
    Console().print(draw_plan(plan))


def _show_run(results: Results, folder: Path) -> None:
    from rich.console import Console

    from truedepth.report.terminal import results_table

    Console().print(results_table(results))
    click.echo()
    _show_plan(results.plan.to_plan(), as_json=False)
    report = folder / REPORT_FILE
    if report.exists():
        click.echo(f"\nThe report: {report}")
