"""`truedepth predict`: how fast a model would be under a plan on hardware that is described by a profile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from truedepth.cli.options import (
    AT_LEAST_1,
    batch_option,
    examples,
    json_option,
    model_argument,
    plan_options,
    print_json,
    prompt_tokens_option,
    trust_remote_code_option,
)
from truedepth.cli.tables import figures_table
from truedepth.methods.plan_text import read_plan

if TYPE_CHECKING:
    from rich.table import Table

    from truedepth.hardware.formula import Range
    from truedepth.hardware.prediction import PassPrediction, Prediction


@click.command(
    epilog=examples(
        "truedepth predict meta-llama/Llama-2-7b-hf --plan layer-parallel.yaml --hardware a100-nvlink-x2",
        "truedepth predict ./folder-with-config --plan run --hardware h100-x2 --batch 16 --context 2048",
        "truedepth predict smollm2-135m --plan '0-19 (20|21) (22|23) 24-29' --hardware rtx-4090-x2:eager",
        "truedepth measure --profile -o here.yaml",
        "truedepth predict smollm2-135m --plan run --hardware here.yaml --json",
    )
)
@model_argument
@plan_options
@click.option(
    "--hardware",
    required=True,
    metavar="HARDWARE",
    help="NAME, NAME-xN for N devices, or a profile file; :STACK behind it names another software stack.",
)
@click.option("--devices", type=AT_LEAST_1, help="Devices that share the model.  [default: as HARDWARE says]")
@batch_option
@click.option("--context", type=AT_LEAST_1, help="Tokens in the KV cache of each.  [default: those of the prompt]")
@prompt_tokens_option
@trust_remote_code_option
@json_option
def command(
    model: str,
    plan: str | None,
    hardware: str,
    devices: int | None,
    batch: int,
    context: int | None,
    prompt_tokens: int,
    trust_remote_code: bool,
    as_json: bool,
    **how: Any,
) -> None:
    """Predict prefill and decode speed of MODEL under a plan, against the unmodified model, and where the time goes.

    Only shapes count: of a folder or a hub model, config.json is enough. Every figure of a profile has a range;
    what is printed in brackets is as far as all of them together can move a prediction.
    """
    from rich.console import Console

    from truedepth.families import family_of
    from truedepth.hardware.prediction import predict
    from truedepth.hardware.profile import load_hardware
    from truedepth.models.loading.load import load_shapes
    from truedepth.records.progress import terminal

    machine = load_hardware(hardware, devices)
    with terminal(f"Reading the shapes of {model}", 1):
        shapes = load_shapes(model, trust_remote_code=trust_remote_code)
    chosen = read_plan(plan, len(family_of(shapes.config).decoder_layers(shapes)), **how)
    plans = {} if chosen.is_full else {"plan": chosen}
    with terminal("Predicting", 1):
        prediction = predict(shapes, machine, plans, batch=batch, context=context, prompt_tokens=prompt_tokens)
    if as_json:
        print_json({"model": model, **prediction.to_dict()})
        return
    console = Console()
    console.print(_table("decode", "a decode step", model, prediction))
    console.print(_table("prefill", "the prompt", model, prediction))


def _table(name: str, what: str, model: str, prediction: Prediction) -> Table:
    """A column for each plan, a row for each figure of one pass."""
    from truedepth.report.format import duration, percent

    hardware = prediction.hardware
    size = f"context {prediction.context}" if name == "decode" else f"{prediction.prompt_tokens} prompt tokens"
    stack = hardware.profile.stacks[hardware.stack].description
    passes: dict[str, PassPrediction] = {own: getattr(found, name) for own, found in prediction.plans.items()}
    table = figures_table(
        f"{model}, {what} on {hardware.devices} x {hardware.profile.description}",
        passes,
        caption=f"Predicted, not measured. Batch {prediction.batch}, {size}. Stack {hardware.stack}: {stack}.",
    )
    table.add_row("stages", *(str(found.plan.effective_depth) for found in prediction.plans.values()))
    table.add_row("tokens/s", *(_range(own.tokens_per_second) for own in passes.values()))
    table.add_row("speedup", *(_range(own.speedup, 2) for own in passes.values()))
    table.add_row("time", *(duration(own.seconds.value) for own in passes.values()))
    for part in ("reading", "computing", "launches", "all_reduces"):
        shares = ((getattr(own.parts, part), own.seconds.value) for own in passes.values())
        cells = (f"{duration(part)}, {percent(part / whole)}" for part, whole in shares)
        table.add_row(f"  {part.replace('_', '-')}", *cells)
    table.add_row("all-reduces", *(str(own.all_reduces) for own in passes.values()))
    return table


def _range(figure: Range, digits: int = 1) -> str:
    low, middle, high = (f"{value:,.{digits}f}" for value in (figure.low, figure.value, figure.high))
    return middle if low == high else f"{middle} ({low} to {high})"
