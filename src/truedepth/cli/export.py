"""`truedepth export`: write a model under a plan for other programs, one subcommand a format."""

from __future__ import annotations

from importlib import import_module

import click

from truedepth.cli.options import examples

# Each is a module of this package with a click command named `command`, imported when it is called.
FORMATS = {
    "hf": ("export_hf", "A checkpoint for transformers and vLLM."),
    "gguf": ("export_gguf", "A GGUF file for llama.cpp."),
}


class _Formats(click.Group):
    """The formats, whose help is known without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(FORMATS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in FORMATS:
            return None
        command = import_module(f"truedepth.cli.{FORMATS[cmd_name][0]}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Formats"):
            formatter.write_dl([(name, summary) for name, (_, summary) in FORMATS.items()])


@click.group(
    cls=_Formats,
    name="export",
    subcommand_metavar="FORMAT [OPTIONS]",
    epilog=examples(
        "truedepth export hf smollm2-135m --plan run -o shallow",
        "truedepth export gguf smollm2-135m --plan run -o shallow.gguf",
    ),
)
def command() -> None:
    """Write a model under a plan for other programs. Groups of layers become wide layers."""
