"""The command `truedepth`: imports the subcommand that runs, and turns errors into one paragraph."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TextIO

import click

from truedepth.cli.options import LazyGroup, examples
from truedepth.errors import TruedepthError
from truedepth.parallel.launch import may_report
from truedepth.records.messages import out_of_memory
from truedepth.records.version import VERSION

# Each is a module of this package with a click command named `command`, imported when it is called.
COMMANDS = {
    "optimize": "Find, check and keep the best plan for a model on this machine.",
    "plan": "Make a plan by one of the published methods.",
    "generate": "Write text with a model under a plan.",
    "measure": "Measure the speed and the quality of a model under a plan.",
    "predict": "Predict the speed of a model under a plan on other hardware.",
    "export": "Write a model under a plan for vLLM, transformers or llama.cpp.",
    "train": "Train a model so that it can do with fewer layers.",
    "vocabulary": "Make a draft vocabulary: the tokens that a draft may propose.",
    "show": "Print and draw a plan or a finished run.",
    "models": "List what truedepth can load: families, embedded and cached models.",
}

INTERRUPTED = 130

_PACKAGE = Path(__file__).parents[1]


@dataclass
class Settings:
    """What the options before the subcommand say."""

    debug: bool = False


def _set_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.ensure_object(Settings).debug = value


@click.group(
    cls=LazyGroup,
    modules={name: (name, summary) for name, summary in COMMANDS.items()},
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples(
        "truedepth optimize smollm2-135m --speedup 1.25 -o run",
        "truedepth show run",
        "truedepth generate smollm2-135m --plan run --prompt 'Why is the sky blue?'",
        "truedepth plan layer-parallel --layers 32 --end 28 --delta 14",
    ),
)
@click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_set_debug,
    help="Show the traceback of an error.",
)
@click.version_option(VERSION, prog_name="truedepth", message="%(prog)s %(version)s")
def cli() -> None:
    """Make a pre-trained language model effectively shallower, run it faster, and see what that costs.

    'truedepth COMMAND --help' explains each command.
    """


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 the job failed, 2 wrong usage, 130 interrupted."""
    settings = Settings()
    try:
        with _own_warnings():
            returned = cli.main(args, prog_name="truedepth", standalone_mode=False, obj=settings)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        if settings.debug and not isinstance(error, click.Abort):
            raise
        exit_code = _report(error)
        _drop_unwritable_output()
        sys.exit(exit_code)
    sys.exit(returned if isinstance(returned, int) else 0)


@contextmanager
def _own_warnings() -> Iterator[None]:
    """Show what truedepth warns of as a sentence, without the line of code that says so."""
    show = warnings.showwarning

    def show_plainly(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if category is UserWarning and Path(filename).is_relative_to(_PACKAGE):
            click.echo(f"truedepth: warning: {message}", err=True)
        else:
            show(message, category, filename, lineno, file, line)

    warnings.showwarning = show_plainly
    try:
        yield
    finally:
        warnings.showwarning = show


def _drop_unwritable_output() -> None:
    """Leave nothing to be flushed at exit that cannot be: Python would complain, and exit with 120."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(error: BaseException) -> int:
    """Say on stderr what went wrong, as one paragraph; returns the exit code."""
    exit_code, said = _ending(error)
    if said and may_report(error):
        click.echo(said, err=True)
    return exit_code


def _ending(error: BaseException) -> tuple[int, str]:
    """The exit code, and what to say."""
    if isinstance(error, BrokenPipeError):
        return 1, ""  # the reader has gone, as in `truedepth models | head -1`: say nothing
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error.exit_code, error.format_message()
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return INTERRUPTED, "truedepth: interrupted"
    message, exit_code = _explain(error)
    return exit_code, f"truedepth: error: {' '.join(message.split())}"


def _explain(error: BaseException) -> tuple[str, int]:
    """What was wrong and what to do, and the exit code."""
    if isinstance(error, TruedepthError):
        return str(error), error.exit_code
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "truedepth"
        return f"{error.format_message()} See '{path} --help'.", error.exit_code
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk is full{_at(error)}; free some space and start again", 1
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{_at(error)}", 1
    if out_of_memory(error):
        said = "" if isinstance(error, RuntimeError) else f" ({error})"  # PyTorch's own are long, and of its insides
        return f"out of memory{said}; use a smaller model, a smaller batch, or --dtype bfloat16", 1
    return (
        f"this is a bug in truedepth: {type(error).__name__}: {error}. "
        "Please report it with the traceback that 'truedepth --debug ...' shows",
        1,
    )


def _at(error: OSError) -> str:
    return f": {error.filename}" if error.filename else ""
