"""`truedepth plan`: make a plan by a published method. Each method is a subcommand."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from truedepth.cli.method_options import options_of, parameters_of
from truedepth.cli.options import (
    LOADING,
    examples,
    json_option,
    load_model,
    loading_options,
    new_file_options,
    options,
    print_json,
    text_option,
    trust_remote_code_option,
)
from truedepth.errors import UsageError
from truedepth.methods.base import EvidenceMethod, LayerMethod, Method
from truedepth.methods.registry import all_methods, get_method
from truedepth.plan import MOST_LAYERS, DepthPlan
from truedepth.report import draw_plan

_output_options = options(new_file_options("Write the plan to a plan.yaml."), json_option)


class MethodGroup(click.Group):
    """A group whose subcommands are the methods, third-party ones included."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(all_methods())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        method = get_method(cmd_name)
        run = _run_evidence if issubclass(method, EvidenceMethod) else _run_layers
        command = click.command(method.name, help=_help(method))(run(method))  # type: ignore[arg-type]
        command.params[:0] = options_of(method)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Methods"):
            formatter.write_dl([(name, method.summary) for name, method in all_methods().items()])


@click.group(
    cls=MethodGroup,
    subcommand_metavar="METHOD [OPTIONS]",
    invoke_without_command=True,
    epilog=examples(
        "truedepth plan layer-parallel --layers 32 --end 28 --delta 14",
        "truedepth plan unified-skipping --layers 32 --speedup 2 --rule published --json",
        "truedepth plan block-influence --model smollm2-135m --depth 26 -o plan.yaml",
        "truedepth plan early-exit --help",
    ),
)
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Make a plan by one of the published methods. Without METHOD, list them.

    Some methods need only the number of layers (--layers), others look at how a model treats calibration text
    (--model). 'truedepth plan METHOD --help' explains a method and its parameters.
    """
    if ctx.invoked_subcommand is not None:
        return
    methods = [_describe(method) for method in all_methods().values()]
    if as_json:
        print_json(methods)
    else:
        _print_methods(methods)


_FILE = click.Path(path_type=Path, dir_okay=False)


def _run_layers(method: type[LayerMethod]) -> Callable[..., None]:
    """The subcommand of a method that needs only the number of layers."""

    @click.option("--layers", type=click.IntRange(1, MOST_LAYERS), metavar="N", help="The model's number of layers.")
    @click.option("--model", metavar="MODEL", help="The model itself, instead of --layers.")
    @trust_remote_code_option
    @_output_options
    def run(
        layers: int | None,
        model: str | None,
        trust_remote_code: bool,
        output: Path | None,
        as_json: bool,
        **values: Any,
    ) -> None:
        chosen = method(**parameters_of(method, values))
        if (layers is None) == (model is None):
            problem = "both --layers and --model are given" if layers else "it needs the number of layers"
            raise UsageError(f"method '{method.name}': {problem}; give either --layers or --model")
        if model is not None:
            layers = load_model(model, trust_remote_code=trust_remote_code).num_layers
        assert layers is not None
        _finish(chosen, chosen.plan(layers), output, as_json)

    return run


def _run_evidence(method: type[EvidenceMethod]) -> Callable[..., None]:
    """The subcommand of a method that looks at how a model treats calibration text."""

    @click.option("--model", metavar="MODEL", help="The model to look at.")
    @click.option("--layers", type=int, hidden=True)
    @text_option("Calibration text.")
    @loading_options
    @_output_options
    def run(
        model: str | None,
        layers: int | None,
        text: Path | None,
        output: Path | None,
        as_json: bool,
        **values: Any,
    ) -> None:
        chosen = method(**parameters_of(method, values))
        if model is None or layers is not None:
            raise UsageError(
                f"method '{method.name}' looks at how a model treats calibration text; give --model instead of --layers"
            )
        from truedepth.evaluation.calibration import calibrate
        from truedepth.evaluation.texts import Sizes, read_texts
        from truedepth.records.progress import terminal

        loaded = load_model(model, **{name: values[name] for name in LOADING})
        texts = read_texts(text, loaded.tokenizer, Sizes())
        plan = chosen.plan(calibrate(loaded.model, texts.calibration, terminal))
        _finish(chosen, plan, output, as_json)

    return run


def _finish(method: Method, plan: DepthPlan, output: Path | None, as_json: bool) -> None:
    """Write and print a plan."""
    parameters = method.model_dump(mode="json")
    if output is not None:
        from truedepth.plan.plan_file import save_plan

        given = ", ".join(f"{name} {value}" for name, value in parameters.items() if value is not None)
        save_plan(plan, output, comment=f"{method.name} ({method.source}): {given}")
    if as_json or click.get_current_context().find_root().params.get("as_json"):
        print_json({**plan.to_dict(), "method": method.name, "parameters": parameters})
        return
    from rich.console import Console

    click.echo(plan.notation)
    Console().print(draw_plan(plan))
    full = DepthPlan.full(plan.num_layers)
    click.echo(
        f"effective depth {plan.effective_depth}; {plan.all_reduces} all-reduces a forward under tensor "
        f"parallelism, {full.all_reduces} without the plan"
    )


def _describe(method: type[Method]) -> dict[str, Any]:
    return {
        "method": method.name,
        "summary": method.summary,
        "needs": "--model" if issubclass(method, EvidenceMethod) else "--layers",
        "source": method.source,
        "parameters": list(method.model_fields),
    }


def _print_methods(methods: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("method", "what it does", "needs", "source", box=None, pad_edge=False)
    for method in methods:
        table.add_row(*(method[column] for column in ("method", "summary", "needs", "source")))
    Console().print(table)


def _help(method: type[Method]) -> str:
    """The method's docstring with its line breaks kept, since formulas stand in it."""
    paragraphs = inspect.cleandoc(method.__doc__ or method.summary).split("\n\n")
    return "\n\n".join("\b\n" + paragraph for paragraph in paragraphs)
