"""`truedepth export hf`: write a model under a plan as a checkpoint for transformers and vLLM."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from truedepth.cli.options import (
    dtype_option,
    examples,
    json_option,
    model_argument,
    output_option,
    overwrite_option,
    plan_options,
    print_json,
    trust_remote_code_option,
)
from truedepth.cli.threads import threads_option

if TYPE_CHECKING:
    from truedepth.export.hf.written import HfExport


@click.command(
    name="hf",
    epilog=examples(
        "truedepth export hf smollm2-135m --plan run -o shallow",
        "truedepth export hf ./checkpoint --plan '0-19 (20|21) (22|23) 24-29' -o wide --dtype bfloat16",
        "truedepth export hf ./checkpoint --plan exit:8 -o draft",
        "vllm serve wide --tensor-parallel-size 2",
    ),
)
@model_argument
@plan_options
@output_option("Folder to write.", "DIR")
@overwrite_option
@dtype_option("keeps the model's")
@trust_remote_code_option
@threads_option
@json_option
def command(
    model: str,
    plan: str | None,
    output: Path,
    overwrite: bool,
    dtype: str,
    trust_remote_code: bool,
    as_json: bool,
    **how: Any,
) -> None:
    """Write a model under a plan as a checkpoint. Without --plan, the whole model.

    Groups become wide layers, which truedepth, transformers (with trust_remote_code) and vLLM (with truedepth) run.
    A plan that only skips layers keeps the model's own architecture: --plan exit:8 makes a draft for vLLM.
    """
    from truedepth.export.hf.export import ABILITY, export_hf
    from truedepth.methods.plan_text import read_plan
    from truedepth.models.loading.source import open_source
    from truedepth.records.files import require_new
    from truedepth.records.progress import terminal
    from truedepth.search.plan_results import RESULTS_FILE, Results

    require_new(output, overwrite=overwrite)
    source = open_source(model, ABILITY, trust_remote_code=trust_remote_code)
    chosen = read_plan(plan, source.config.num_hidden_layers, **how)
    results = Path(plan) / RESULTS_FILE if plan is not None else None
    measured = Results.load(results) if results is not None and results.is_file() else None
    written = export_hf(source, chosen, output, dtype=dtype, measured=measured, overwrite=overwrite, progress=terminal)
    if as_json:
        print_json(asdict(written) | {"plan": chosen.to_dict()})
    else:
        _print(written)


def _print(written: HfExport) -> None:
    click.echo(f"{written.stages} layers of {written.architecture}, {written.nbytes / 1e6:,.1f} MB, in {written.path}")
    if check := written.check:
        click.echo(
            f"Against the plan on the source, over {check.tokens} tokens in float32: largest difference of two logits "
            f"{check.max_abs_error:.2g} (the largest logit is {check.max_abs_logit:.3g}), "
            f"same most likely token at {check.agreement:.1%}"
        )
