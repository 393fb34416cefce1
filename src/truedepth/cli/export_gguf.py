"""`truedepth export gguf`: write a model under a plan as a GGUF file for llama.cpp."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from truedepth.cli.options import (
    examples,
    json_option,
    model_argument,
    new_file_options,
    plan_options,
    print_json,
    trust_remote_code_option,
)
from truedepth.cli.threads import threads_option


@click.command(
    epilog=examples(
        "truedepth export gguf smollm2-135m --plan plan.yaml -o model.gguf --type q8_0",
        "truedepth export gguf ./checkpoint --plan '0-19 (20|21) (22|23) 24-29' -o wide.gguf --type f32",
        "truedepth export gguf smollm2-135m --plan exit:8 -o draft.gguf",
        "llama-server -m model.gguf --model-draft draft.gguf",
    )
)
@model_argument
@plan_options
@new_file_options("Where to write it.", required=True)
@click.option(
    "--type",
    "kind",
    default="f16",
    show_default=True,
    metavar="TYPE",
    help="Type of the matrices: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1 or q4_0.",
)
@trust_remote_code_option
@threads_option
@json_option
def command(
    model: str, plan: str | None, output: Path, kind: str, trust_remote_code: bool, as_json: bool, **how: Any
) -> None:
    """Write a model under a plan as a GGUF file, which stock llama.cpp runs. Without --plan, the whole model.

    Groups become wide layers. The first layers alone (--plan exit:8) make a draft for llama.cpp's speculative decoding.
    """
    from truedepth.export.gguf.export import export_gguf
    from truedepth.export.gguf.types import require_type
    from truedepth.methods.plan_text import read_plan
    from truedepth.models.loading.source import open_source
    from truedepth.records.progress import terminal

    require_type(kind)
    source = open_source(model, "gguf", trust_remote_code=trust_remote_code)
    depth_plan = read_plan(plan, source.config.num_hidden_layers, **how)
    written = export_gguf(source, depth_plan, output, type=kind, progress=terminal)
    if as_json:
        print_json(asdict(written) | {"plan": depth_plan.to_dict()})
        return
    click.echo(
        f"{written.blocks} blocks of the architecture {written.architecture} in {written.type}, "
        f"{written.nbytes / 1e6:,.1f} MB; written to {written.path}"
    )
    for note in written.notes:
        click.echo(f"Note: {note}.")
