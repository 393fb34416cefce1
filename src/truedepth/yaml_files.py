"""Reading the YAML files that people write: strictly, with messages that say which field is wrong and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from truedepth.errors import TruedepthError

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
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as problem:
        raise error(f"cannot read {path}: {problem.strerror}; give {what}") from None
    except UnicodeDecodeError as problem:
        raise error(f"{path} is not UTF-8 text (byte {problem.start}); save it as UTF-8") from None
    return parse_yaml(text, str(path), schema, what, error)


def parse_yaml(text: str, name: str, schema: type[Record], what: str, error: type[TruedepthError]) -> Record:
    """Read YAML text; `name` says in messages where it came from. See `read_yaml`."""
    try:
        fields = yaml.safe_load(text)
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise error(f"{name} is not YAML{where}: {problem.problem}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as problem:
        raise error(f"{name} is not YAML: {' '.join(str(problem).split())}") from None
    known = ", ".join(schema.model_fields)
    if not isinstance(fields, dict):
        raise error(f"{name} is not {what}; its fields are {known}")
    try:
        return schema.model_validate(fields)
    except ValidationError as problem:
        details = "; ".join(_explain(detail, known) for detail in problem.errors(include_url=False))
        raise error(f"{name} is not {what}: {details}") from None


def _explain(detail: Any, known: str) -> str:
    """One of pydantic's findings in our words."""
    field = ".".join(map(str, detail["loc"]))
    message = detail["msg"].removeprefix("Value error, ")
    if not field:
        return str(message)
    if detail["type"] in ("extra_forbidden", "invalid_key"):
        return f"unknown field '{field}'; the fields are {known}"
    if detail["type"] == "missing":
        return f"the field '{field}' is missing"
    if detail["type"] == "string_type":
        return f"the field '{field}' must be text; put it in quotes"
    return f"the field '{field}' is {detail['input']!r}; {message[:1].lower()}{message[1:]}"
