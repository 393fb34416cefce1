"""What several commands share: arguments, options, and how their values become plans and output."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from truedepth.cli.threads import threads_option
from truedepth.methods.plan_text import PLAN_FORMATS
from truedepth.models.loading.placement import DTYPES
from truedepth.plan import FORMS, PREFILLS

if TYPE_CHECKING:
    from truedepth.models.loading.load import LoadedModel

Command = TypeVar("Command", bound=Callable[..., Any])
AnyOption = Callable[[Callable[..., Any]], Callable[..., Any]]

AT_LEAST_1 = click.IntRange(1)

model_argument = click.argument("model")
"""`MODEL`: whatever `truedepth.load` takes."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of text.")
"""`--json`, passed as `as_json`."""


trust_remote_code_option = click.option(
    "--trust-remote-code", is_flag=True, help="Run Python code that comes with the model."
)
"""`--trust-remote-code`."""

form_option = click.option(
    "--form", type=click.Choice(FORMS), help="How groups run.  [default: as in the plan file, else lp]"
)

prefill_option = click.option(
    "--prefill",
    type=click.Choice(PREFILLS),
    help="What the prompt runs: the plan, or every layer.  [default: as in the plan file, else plan]",
)

batch_option = click.option("--batch", type=AT_LEAST_1, default=1, show_default=True, help="Sequences run at once.")

prompt_tokens_option = click.option(
    "--prompt-tokens", type=AT_LEAST_1, default=64, show_default=True, help="Tokens of each prompt."
)


def output_option(what: str, metavar: str = "PATH") -> AnyOption:
    """`--output`: the folder to write."""
    return click.option("-o", "--output", type=click.Path(path_type=Path), metavar=metavar, required=True, help=what)


overwrite_option = click.option("--overwrite", is_flag=True, help="Replace what is there under this name.")
"""`--overwrite`: without it, an output that exists is refused."""


def new_file_options(what: str, *, required: bool = False) -> Callable[[Command], Command]:
    """`--output` for one file, which is refused where it exists already, and `--overwrite`, which takes it."""

    def keep(context: click.Context, _: click.Parameter, overwrite: bool) -> None:
        context.meta[__name__] = overwrite

    def check(context: click.Context, _: click.Parameter, output: Path | None) -> Path | None:
        from truedepth.records.files import require_new

        if output is not None:
            require_new(output, overwrite=context.meta[__name__])
        return output

    file = click.Path(path_type=Path, dir_okay=False)
    return options(
        click.option("-o", "--output", type=file, metavar="FILE", required=required, callback=check, help=what),
        click.option(
            "--overwrite",
            is_flag=True,
            is_eager=True,  # so that `check` knows it
            expose_value=False,
            callback=keep,
            help="Replace the file where it exists.",
        ),
    )


def text_option(what: str) -> AnyOption:
    """`--text`: a file instead of the default text."""
    about = f"{what}  [default: Python's own documentation and source]"
    return click.option("--text", type=click.Path(path_type=Path), metavar="FILE", help=about)


def dtype_option(auto: str) -> AnyOption:
    """`--dtype`; `auto` says what the default does."""
    about = f"Type of the weights; auto {auto}."
    return click.option("--dtype", type=click.Choice(DTYPES), default="auto", show_default=True, help=about)


def options(*given: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Several options as one decorator, in the order in which they are shown."""

    def decorate(command: Command) -> Command:
        for option in reversed(given):
            command = option(command)
        return command

    return decorate


loading_options = options(
    dtype_option("picks what the device is fast at"),
    click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps."),
    trust_remote_code_option,
    threads_option,
)
"""`--dtype`, `--device` and `--trust-remote-code`: the keyword arguments of `truedepth.load`; and `--threads`."""

LOADING = ("dtype", "device", "trust_remote_code")
"""What `loading_options` pass."""

plan_options = options(
    click.option("--plan", metavar="PLAN", help=f"Run this plan: {PLAN_FORMATS}."),
    form_option,
    prefill_option,
)
"""`--plan`, `--form` and `--prefill`: the arguments of `truedepth.methods.plan_text.read_plan`."""


class LazyGroup(click.Group):
    """A group that knows its subcommands' help without importing them.

    Args:
        modules: by a subcommand's name, the module of this package whose `command` it is, and its help in one line.
        title: of their list.
    """

    def __init__(self, *args: Any, modules: dict[str, tuple[str, str]], title: str = "Commands", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._modules, self._title = modules, title

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._modules:
            return None
        command = import_module(f"truedepth.cli.{self._modules[cmd_name][0]}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section(self._title):
            formatter.write_dl([(name, summary) for name, (_, summary) in self._modules.items()])


def load_model(model: str, **loading: Any) -> LoadedModel:
    """Load what `model_argument` and `loading_options` say, and show that on stderr."""
    from truedepth.models.loading.load import load
    from truedepth.records.progress import terminal

    with terminal(f"Loading {model}", 1):
        return load(model, **loading)


def examples(*lines: str) -> str:
    """An epilog that shows command lines to copy, kept as they are."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def print_json(data: Any) -> None:
    """What `--json` prints: one JSON value, indented, in the order in which it was built."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot print {type(value).__name__} as JSON")
