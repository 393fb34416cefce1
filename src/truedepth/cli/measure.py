"""`truedepth measure`: how fast a model is under a plan, and how far that is from the limit of the memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from truedepth.cli.measure_ranks import measure_shared
from truedepth.cli.options import (
    AT_LEAST_1,
    batch_option,
    examples,
    json_option,
    load_model,
    loading_options,
    new_file_options,
    plan_options,
    print_json,
    prompt_tokens_option,
    text_option,
)
from truedepth.cli.ranks import join_ranks
from truedepth.cli.tables import add_speeds, compared, comparison_table, figures_table, print_measurement, spread
from truedepth.errors import UsageError
from truedepth.methods.plan_text import read_plan
from truedepth.plan import DepthPlan, Form, Prefill

if TYPE_CHECKING:
    from rich.table import Table

    from truedepth.measuring.measurement import Measurement
    from truedepth.models.loading.load import LoadedModel


@click.command(
    epilog=examples(
        "truedepth measure smollm2-135m",
        "truedepth measure smollm2-135m --plan run --quality",
        "truedepth measure smollm2-135m --plan run --text my.txt",
        "truedepth measure smollm2-135m --plan '0-19 (20|21) (22|23) 24-29' --form par --stages",
        "truedepth measure ./checkpoint --plan plan.yaml --batch 8 --prompt-tokens 512 --json",
        "truedepth measure --profile -o here.yaml",
        "torchrun --nproc-per-node 2 -m truedepth measure --profile -o two-ranks.yaml",
    )
)
@click.argument("model", required=False)
@plan_options
@batch_option
@prompt_tokens_option
@click.option("--new-tokens", type=AT_LEAST_1, default=32, show_default=True, help="Tokens to decode then.")
@click.option("--repeats", type=click.IntRange(3), default=5, show_default=True, help="Timed runs of each.")
@click.option("--stages", is_flag=True, help="Also time each stage of a decode step.")
@click.option("--quality", is_flag=True, help="Also judge perplexity, KL divergence and agreement.")
@text_option("Judge quality on this text (UTF-8).")
@click.option("--profile", is_flag=True, help="Measure the hardware profile of this machine instead of a model.")
@new_file_options("Write the profile to this file.")
@loading_options
@json_option
def command(
    model: str | None,
    plan: str | None,
    form: Form | None,
    prefill: Prefill | None,
    batch: int,
    prompt_tokens: int,
    new_tokens: int,
    repeats: int,
    stages: bool,
    quality: bool,
    text: Path | None,
    profile: bool,
    output: Path | None,
    as_json: bool,
    **loading: Any,
) -> None:
    """Time a model under a plan, in turns with the unmodified model, and judge its quality if asked.

    Prints the medians of all runs, how the two compare run by run, and how much of the memory's bandwidth
    decoding uses: every new token reads all weights, so at 100 % only a smaller or shallower model is faster.

    With --profile it measures the machine itself, for 'truedepth predict' and 'truedepth optimize --hardware': how
    fast it reads weights, computes and starts kernels, and over several ranks what an all-reduce takes.
    """
    if profile:
        _measure_profile(model, plan, output, loading, as_json)
        return
    if model is None or output is not None:
        raise UsageError("give a MODEL to measure, or --profile [-o FILE] to measure the machine itself")
    sizes = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "batch": batch, "repeats": repeats}
    read = partial(read_plan, plan, form=form, prefill=prefill)
    quality = quality or text is not None
    ranks = join_ranks(loading["device"], {"--stages": stages})
    if ranks:
        measure_shared(model, read, ranks, sizes, text, quality=quality, as_json=as_json, **loading)
    else:
        _measure(load_model(model, **loading), read, sizes, text, stages=stages, quality=quality, as_json=as_json)


def _measure(
    loaded: LoadedModel,
    read: Callable[[int], DepthPlan],
    sizes: dict[str, int],
    text: Path | None,
    *,
    stages: bool,
    quality: bool,
    as_json: bool,
) -> None:
    from truedepth.evaluation.quality import compare_quality
    from truedepth.evaluation.texts import Sizes, read_texts
    from truedepth.measuring.measurement import measure
    from truedepth.records.progress import terminal

    plans = compared(read(loaded.num_layers))
    measurement = measure(loaded.model, plans, **sizes, stages=stages, progress=terminal)
    qualities = {}
    if quality:
        qualities = compare_quality(loaded.model, plans, read_texts(text, loaded.tokenizer, Sizes()).test, terminal)
    tables = [_speed_table(loaded.name, measurement), *(_stage_table(name, measurement) for name in measurement.stages)]
    print_measurement(loaded.name, measurement, qualities, tables, as_json=as_json)


def _measure_profile(
    model: str | None, plan: str | None, output: Path | None, loading: dict[str, Any], as_json: bool
) -> None:
    """Write the profile of this machine to a file, or print it; of several ranks the first does so."""
    from truedepth.hardware.profiling import measure_profile, save_profile, to_yaml
    from truedepth.models.loading.placement import resolve_device, resolve_dtype
    from truedepth.records.progress import terminal

    if model is not None or plan is not None:
        raise UsageError("--profile measures the machine, whatever the model; leave out MODEL and --plan")
    ranks = join_ranks(loading["device"], {})
    device = ranks.device if ranks else resolve_device(loading["device"])
    profile = measure_profile(device, resolve_dtype(loading["dtype"], device), terminal)
    if ranks and ranks.rank > 0:
        return
    if output is not None:
        save_profile(profile, output)
    if as_json:
        print_json(profile.model_dump(exclude_none=True))
    elif output is None:
        click.echo(to_yaml(profile), nl=False)
    else:
        click.echo(f"wrote {output}; use it with: truedepth predict MODEL --plan PLAN --hardware {output}")


def _speed_table(model: str, measurement: Measurement) -> Table:
    """A column for each plan, a row for each figure."""
    from truedepth.report.format import percent, size

    comparison, machine = measurement.comparison, measurement.machine
    table = comparison_table(
        f"{model} on {machine.device} ({machine.processor}, {machine.threads} threads)",
        f". Memory reads at {size(machine.bandwidth_bytes_per_second)}/s.",
        comparison,
    )
    speeds = comparison.speeds
    table.add_row("stages", *(str(plan.effective_depth) for plan in measurement.plans.values()))
    add_speeds(table, comparison)
    first = (own.time_to_first_token_seconds for own in speeds.values())
    table.add_row("first token, ms", *(spread(own, factor=1e3) for own in first))
    table.add_row("read for a token", *(size(measurement.bytes_per_token[name]) for name in speeds))
    table.add_row("of the memory limit", *(percent(measurement.bandwidth_share(name)) for name in speeds))
    return table


def _stage_table(name: str, measurement: Measurement) -> Table:
    """Where a decode step's time goes."""
    from truedepth.report.format import duration, percent

    times = measurement.stages[name]
    table = figures_table(f"A decode step: {name}", ["time", "share"], rows="part")
    stages = zip(times.notation, times.stages, strict=True)
    parts = [(f"stage {stage}", seconds) for stage, seconds in stages]
    parts += [("final norm", times.final_norm), ("LM head", times.head), ("rest", times.rest)]
    for part, seconds in [*parts, ("step", times.step)]:
        table.add_row(part, duration(seconds), percent(seconds / times.step, 1))
    return table
