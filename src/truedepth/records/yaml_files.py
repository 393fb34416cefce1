"""Reading the YAML files that people write: strictly, with messages that say which field is wrong and why."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from truedepth.errors import TruedepthError
from truedepth.records.messages import one_line
from truedepth.records.text_files import read_text, refuse_lone_surrogates

_MOST_VALUES = 100_000
"""Of one file; a few lines of aliases can stand for more than memory holds."""

_SHOWN = 200
"""Characters of a wrong value that a message shows."""

Record = TypeVar("Record", bound=BaseModel)


def read_yaml(path: Path, schema: type[Record], what: str, error: type[TruedepthError]) -> Record:
    """Read a YAML file of the fields that `schema` has.

    Args:
        schema: refuses unknown fields (`extra="forbid"`).
        what: what the file is, with its article, such as "a plan file".
        error: the class of the errors raised.

    Raises:
        TruedepthError: (of class `error`) the file is missing, is not UTF-8 or YAML (with line and column), or has
            an unknown, missing or wrong field (by name).
    """
    return parse_yaml(read_text(path, what, error), str(path), schema, what, error)


def parse_yaml(text: str, name: str, schema: type[Record], what: str, error: type[TruedepthError]) -> Record:
    """Read YAML text; `name` says in messages where it came from. See `read_yaml`."""
    try:
        if _values(yaml.compose(text, yaml.SafeLoader), {}) > _MOST_VALUES:
            raise error(f"{name} stands for more values than are read, by its aliases (*name); write the values out")
        fields = yaml.safe_load(text)
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise error(f"{name} is not YAML{where}: {problem.problem}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as problem:
        raise error(f"{name} is not YAML: {one_line(problem)}") from None
    if not isinstance(fields, dict):
        raise error(f"{name} is not {what}; its fields are {', '.join(schema.model_fields)}")
    refuse_lone_surrogates(fields, name, error)
    try:
        return schema.model_validate(fields)
    except ValidationError as problem:
        details = "; ".join(_explain(detail, schema) for detail in problem.errors(include_url=False))
        raise error(f"{name} is not {what}: {details}") from None


def _values(node: yaml.Node | None, known: dict[int, float]) -> float:
    """How many values a node stands for, those of its aliases included; endless if it is within itself.

    Args:
        known: the same of nodes that were seen already, by their identity.
    """
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf  # until all inside of it are counted
        inside = [own for pair in node.value for own in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_values(own, known) for own in inside)
    return known[id(node)]


def _explain(detail: Any, schema: type[BaseModel]) -> str:
    """One of pydantic's findings in our words."""
    field = ".".join(map(str, detail["loc"]))
    message = detail["msg"].removeprefix("Value error, ")
    if not field:
        return str(message)
    if detail["type"] in ("extra_forbidden", "invalid_key"):
        return f"unknown field '{field}'; the fields are {', '.join(_known(schema, detail['loc'][:-1]))}"
    if detail["type"] == "missing":
        return f"the field '{field}' is missing"
    if detail["type"] == "string_type":
        return f"the field '{field}' must be text; put it in quotes"
    said = repr(detail["input"])
    shown = said if len(said) <= _SHOWN else f"{said[:_SHOWN]}..."
    return f"the field '{field}' is {shown}; {message[:1].lower()}{message[1:]}"


def _known(schema: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The fields that there are at a location within a schema: those of the groups on the way to it."""
    for name in location:
        if isinstance(name, str) and name in schema.model_fields:
            schema = next(_groups(schema.model_fields[name].annotation), schema)
    return list(schema.model_fields)


def _groups(annotation: Any) -> Iterator[type[BaseModel]]:
    """The schemas that a field's type has: itself, or within a list or a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _groups(part)
