"""A method's parameters as command-line options."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from truedepth.methods.base import Method


def options_of(method: type[Method]) -> list[click.Option]:
    """One option for each parameter, in their order; an option that is not given has the value None."""
    return [_option(name, field) for name, field in method.model_fields.items()]


def parameters_of(method: type[Method], values: dict[str, Any]) -> dict[str, Any]:
    """Those of a command's values that are parameters of the method and were given."""
    return {name: values[name] for name in method.model_fields if values[name] is not None}


def _option(name: str, field: FieldInfo) -> click.Option:
    flag = "--" + name.replace("_", "-")
    kind = _without_none(field.annotation)
    extra: dict[str, Any] = {}
    if kind is bool:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
        extra["default"] = None  # else click would say False for a flag that is not given
    description = (field.description or "").strip()
    if not field.is_required() and field.default is not None:
        description += f"  [default: {field.default}]"
    return click.Option(
        [flag, name],
        type=click.Choice(get_args(kind)) if get_origin(kind) is Literal else _SIMPLE.get(kind, str),
        required=field.is_required(),
        help=description,
        **extra,
    )


_SIMPLE: dict[Any, type] = {int: int, float: float, bool: bool}


def _without_none(annotation: Any) -> Any:
    """The type X of a parameter of type `X | None`; other types as they are."""
    if get_origin(annotation) in (Union, UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
        return kinds[0] if len(kinds) == 1 else annotation
    return annotation
