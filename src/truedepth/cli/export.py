"""`truedepth export`: write a model under a plan for other programs, one subcommand a format."""

from __future__ import annotations

import click

from truedepth.cli.options import LazyGroup, examples

# Each is a module of this package with a click command named `command`, imported when it is called.
FORMATS = {
    "hf": ("export_hf", "A checkpoint for transformers and vLLM."),
    "gguf": ("export_gguf", "A GGUF file for llama.cpp."),
}


@click.group(
    cls=LazyGroup,
    modules=FORMATS,
    title="Formats",
    name="export",
    subcommand_metavar="FORMAT [OPTIONS]",
    epilog=examples(
        "truedepth export hf smollm2-135m --plan run -o shallow",
        "truedepth export gguf smollm2-135m --plan run -o shallow.gguf",
    ),
)
def command() -> None:
    """Write a model under a plan for other programs. Groups of layers become wide layers."""
