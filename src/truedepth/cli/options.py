"""What several commands share: arguments, options, and how their values become plans and output."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from truedepth.errors import PlanError
from truedepth.models.placement import DTYPES
from truedepth.plan import FORMS, PREFILLS, DepthPlan, Form, Prefill

if TYPE_CHECKING:
    from truedepth.models.load import LoadedModel

Command = TypeVar("Command", bound=Callable[..., Any])

_NOTATION = re.compile(r"[\d\s()|+-]*")
_MISSPELT_NOTATION = re.compile(r"[\d(][^/\\]*(?<!\.yaml)(?<!\.yml)")

model_argument = click.argument("model")
"""`MODEL`: whatever `truedepth.load` takes."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of text.")
"""`--json`, passed as `as_json`."""


def loading_options(command: Command) -> Command:
    """`--dtype`, `--device` and `--trust-remote-code`: the keyword arguments of `truedepth.load`."""
    for option in (
        click.option(
            "--trust-remote-code",
            is_flag=True,
            help="Run Python code that comes with the model.",
        ),
        click.option(
            "--device",
            default="auto",
            show_default=True,
            metavar="NAME",
            help="auto, cpu, cuda, cuda:1 or mps.",
        ),
        click.option(
            "--dtype",
            type=click.Choice(DTYPES),
            default="auto",
            show_default=True,
            help="Type of the weights; auto picks what the device is fast at.",
        ),
    ):
        command = option(command)
    return command


def plan_options(command: Command) -> Command:
    """`--plan`, `--form` and `--prefill`: the arguments of `resolve_plan`."""
    for option in (
        click.option(
            "--prefill",
            type=click.Choice(PREFILLS),
            help="What the prompt runs: the plan, or every layer.  [default: as in the plan file, else plan]",
        ),
        click.option(
            "--form",
            type=click.Choice(FORMS),
            help="How groups run.  [default: as in the plan file, else lp]",
        ),
        click.option(
            "--plan",
            metavar="PLAN",
            help="A plan.yaml, a finished run's folder, or a notation such as '0-19 (20|21) 22-29'.",
        ),
    ):
        command = option(command)
    return command


def resolve_plan(
    text: str | None, num_layers: int, form: Form | None = None, prefill: Prefill | None = None
) -> DepthPlan:
    """The plan that the options of `plan_options` mean for a model of `num_layers` layers.

    Args:
        text: a plan file, a finished run's folder, a notation, or None for every layer.
        form, prefill: override what the file says.

    Raises:
        PlanError: it cannot be read, is malformed, or is for another number of layers.
    """
    if text is None:
        return DepthPlan.full(num_layers)
    is_path = _MISSPELT_NOTATION.fullmatch(text) is None or Path(text).exists()
    if _NOTATION.fullmatch(text) or not is_path:
        return DepthPlan.parse(text, num_layers, form or "lp", prefill or "plan")
    if not Path(text).exists():
        raise PlanError(
            f"there is no plan file or run '{text}'; give a plan.yaml, a finished run's folder, "
            "or a notation such as '0-19 (20|21) 22-29'"
        )
    from truedepth.plan_file import load_plan

    plan = load_plan(text)
    if plan.num_layers != num_layers:
        raise PlanError(
            f"the plan in {text} is for {plan.num_layers} layers, but the model has {num_layers}; "
            "use the model that it was made for, or make another plan"
        )
    return DepthPlan(plan.stages, num_layers, form or plan.form, prefill or plan.prefill)


def load_model(model: str, **loading: Any) -> LoadedModel:
    """Load what `model_argument` and `loading_options` say, with a spinner on stderr."""
    from rich.console import Console

    from truedepth.models.load import load

    with Console(stderr=True).status(f"Loading {model}"):
        return load(model, **loading)


def num_layers_of(loaded: LoadedModel) -> int:
    """The number of decoder layers of a loaded model."""
    from truedepth.families import family_of

    return len(family_of(loaded.model.config).decoder_layers(loaded.model))


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
