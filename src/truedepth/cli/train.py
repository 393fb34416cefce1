"""`truedepth train`: one subcommand a kind of training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from truedepth.cli.options import LazyGroup, examples, json_option, output_option, print_json
from truedepth.cli.threads import threads_option
from truedepth.report import REPORT_FILE, results_table, write_report
from truedepth.training.kinds import KINDS

if TYPE_CHECKING:
    from truedepth.training.results import TrainingResults


class _Kinds(LazyGroup):
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _kind_command(cmd_name) if cmd_name in KINDS else None


@click.group(
    cls=_Kinds,
    modules=KINDS,
    title="Kinds",
    name="train",
    epilog=examples(
        "truedepth train layerskip recipes/layerskip-task.yaml -o run",
        "truedepth train layerskip run/recipe.yaml -o run --resume",
        "torchrun --nproc-per-node 2 -m truedepth train layerskip recipes/layerskip-task.yaml -o run",
    ),
)
def command() -> None:
    """Train a model by a recipe, and write what was made, its figures and a report to a folder."""


def _kind_command(name: str) -> click.Command:
    """The subcommand of one kind."""

    @click.command(
        name=name,
        help=f"{KINDS[name][1]}\n\nRECIPE is a YAML file; docs/training.md explains its fields.",
        short_help=KINDS[name][1],
        epilog=examples(
            f"truedepth train {name} recipe.yaml -o run",
            f"truedepth train {name} run/recipe.yaml -o run --resume",
        ),
    )
    @click.argument("recipe", type=click.Path(path_type=Path))
    @output_option("Folder for all results.")
    @click.option("--resume", is_flag=True, help="Go on with an interrupted training in the output folder.")
    @threads_option
    @json_option
    def kind_command(recipe: Path, output: Path, resume: bool, as_json: bool) -> None:
        _train(name, recipe, output, resume, as_json)

    return kind_command


def _train(name: str, recipe: Path, output: Path, resume: bool, as_json: bool) -> None:
    from truedepth.training.kinds import find_kind

    kind = find_kind(name)
    settings = kind.recipe.load(recipe)

    from truedepth.cli.training_display import TrainingDisplay
    from truedepth.records.progress import terminal
    from truedepth.training.run import train

    with TrainingDisplay() as display:
        results = train(kind, settings, output, resume=resume, progress=terminal, on_snapshot=display.on_snapshot)
    if results is None:  # another rank than the first
        return
    write_report(results, output)
    if as_json:
        print_json(results.to_dict())
    else:
        _show(results, output)


def _show(results: TrainingResults, output: Path) -> None:
    from rich.console import Console

    console = Console()
    console.print(results_table(results))
    for label, path in ((results.product.description, results.product.path), ("The report", REPORT_FILE)):
        console.print(f"{label}: {output / path}", soft_wrap=True, highlight=False)
