"""`truedepth optimize`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from truedepth.cli.options import examples, json_option, loading_options, output_option, print_json
from truedepth.errors import UsageError
from truedepth.report import draw_plan, results_table, write_report
from truedepth.search.moves import MOVES, Move
from truedepth.search.recipe import LosslessRecipe, Recipe, Windows, load_recipe

if TYPE_CHECKING:
    from truedepth.plan import DepthPlan
    from truedepth.search.draft_results import LosslessResults
    from truedepth.search.plan_results import Results

_TARGETS = ("speedup", "max_perplexity_ratio", "depth")
_SHALLOWER_ONLY = ("skip_only", "layers_parallel_only", "form", "hardware")
"""Options that say how to make the model shallower, which a draft does not."""


@click.command(
    epilog=examples(
        "truedepth optimize smollm2-135m --speedup 1.25 -o run",
        "truedepth optimize meta-llama/Llama-3.2-3B --max-perplexity-ratio 1.2 --text my.txt -o run",
        "truedepth optimize smollm2-135m --depth 25 --layers-parallel-only --hardware a100-nvlink-x2 -o run",
        "truedepth optimize smollm2-135m --lossless --text chat.txt -o run",
        "truedepth optimize smollm2-135m --speedup 1.25 -o run --resume",
        "truedepth optimize --recipe run/recipe.yaml -o again",
    )
)
@click.argument("model", required=False)
@click.option("--speedup", type=float, help="Reach this many times the decode speed of the unmodified model.")
@click.option("--max-perplexity-ratio", type=float, help="Be as fast as this ratio of perplexities allows.")
@click.option("--depth", type=int, help="Reach this number of stages.")
@click.option("--lossless", is_flag=True, help="Find a draft for speculative decoding, which changes no text.")
@output_option("Folder for plan and report.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run in the output folder.")
@click.option("--skip-only", is_flag=True, help="Only skip layers.")
@click.option("--layers-parallel-only", is_flag=True, help="Only put layers side by side.")
@click.option("--form", type=click.Choice(MOVES[1:]), help="Only this form of groups.  [default: both]")
@click.option("--hardware", metavar="HARDWARE", help="Plan for this hardware instead of this machine, such as h100-x2.")
@click.option("--text", type=click.Path(path_type=Path), help="Judge plans on this text (UTF-8).")
@click.option(
    "--windows", metavar="C,V,T", help="Text windows of each split.  [default: 3,12,12; with --lossless 8,4,8]"
)
@click.option("--seed", type=int, default=0, show_default=True, help="Which of the default texts are drawn.")
@click.option("--recipe", "recipe_file", type=click.Path(path_type=Path), help="Take all settings from a file.")
@loading_options
@json_option
def command(
    model: str | None,
    output: Path,
    resume: bool,
    recipe_file: Path | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Find the best depth plan for MODEL, check it, and write plan, figures and report to a folder.

    Give exactly one target: --speedup, --max-perplexity-ratio, --depth, or --lossless, which keeps the model as it is
    and looks for the plan that drafts best for it.
    """
    recipe = _recipe(model, recipe_file, settings)
    results, plan = _find(recipe, output, resume)
    report = write_report(results, output)
    if as_json:
        print_json(results.to_dict())
        return
    console = Console()
    console.print(draw_plan(plan))
    console.print(results_table(results))
    console.print(f"The report is {report}", soft_wrap=True, highlight=False)


def _find(recipe: Recipe | LosslessRecipe, output: Path, resume: bool) -> tuple[Results | LosslessResults, DepthPlan]:
    """What the job finds that the recipe describes, and the plan of it, shown as it goes on."""
    from truedepth.cli.live import JobDisplay
    from truedepth.search.draft_job import optimize_lossless
    from truedepth.search.plan_job import optimize

    with JobDisplay() as display:
        if isinstance(recipe, LosslessRecipe):
            draft = optimize_lossless(recipe, output, resume=resume, progress=display.progress)
            return draft, draft.best.draft.to_plan()
        found = optimize(recipe, output, resume=resume, progress=display.progress, on_step=display.on_step)
        return found, found.plan.to_plan()


def _recipe(model: str | None, recipe_file: Path | None, settings: dict[str, Any]) -> Recipe | LosslessRecipe:
    """What the options say.

    Raises:
        UsageError: not exactly one target, no model, or settings beside a recipe file.
    """
    if recipe_file is not None:
        if model is not None:
            raise UsageError("give either MODEL or --recipe, not both; the recipe names its model")
        return load_recipe(recipe_file)
    if model is None:
        raise UsageError("no model is given; give MODEL (such as smollm2-135m) or --recipe FILE")
    lossless = settings.pop("lossless")
    targets = {name: settings.pop(name) for name in _TARGETS}
    given = {name: value for name, value in targets.items() if value is not None}
    if len(given) + lossless != 1:
        raise UsageError("give exactly one target: --speedup, --max-perplexity-ratio, --depth or --lossless")
    windows = settings.pop("windows")
    if windows is not None:
        settings["windows"] = _windows(windows)
    if lossless:
        return _lossless_recipe(model, settings)
    ((target, value),) = given.items()
    moves = _moves(settings.pop("skip_only"), settings.pop("layers_parallel_only"), settings.pop("form"))
    return Recipe.model_validate({"model": model, "target": target, "value": value, "moves": moves, **settings})


def _lossless_recipe(model: str, settings: dict[str, Any]) -> LosslessRecipe:
    wrong = [f"--{name.replace('_', '-')}" for name in _SHALLOWER_ONLY if settings.pop(name)]
    if wrong:
        raise UsageError(
            f"{' and '.join(wrong)} cannot go with --lossless, which times drafts of every kind on this machine; "
            "leave it out"
        )
    return LosslessRecipe.model_validate({"model": model, **settings})


def _moves(skip_only: bool, layers_parallel_only: bool, form: Move | None) -> tuple[Move, ...]:
    if skip_only and (layers_parallel_only or form):
        raise UsageError("--skip-only leaves no groups; drop --layers-parallel-only and --form")
    groups: tuple[Move, ...] = (form,) if form else MOVES[1:]
    if skip_only:
        return ("skip",)
    return groups if layers_parallel_only else ("skip", *groups)


def _windows(text: str) -> Windows:
    counts = text.split(",")
    if len(counts) != 3 or not all(count.strip().isdigit() and int(count) > 0 for count in counts):
        raise UsageError(
            f"--windows is '{text}'; give three numbers of at least 1: calibration,validation,test, such as 3,12,12"
        )
    calibration, validation, test = map(int, counts)
    return Windows(calibration=calibration, validation=validation, test=test)
