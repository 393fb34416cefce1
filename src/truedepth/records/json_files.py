"""Reading the JSON files that others write, with messages that say what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from truedepth.errors import TruedepthError
from truedepth.records.messages import TOO_DEEP


def read_json(path: Path, error: type[TruedepthError], remedy: str) -> Any:
    """The value in a JSON file.

    Args:
        error: the class of the errors raised.
        remedy: what to do about a damaged file.

    Raises:
        TruedepthError: (of class `error`) the file cannot be read, or is not JSON in UTF-8.
    """
    try:
        text = path.read_bytes()
    except OSError as problem:
        reason = "it is a folder" if path.is_dir() else str(problem.strerror or problem)
        raise error(f"cannot read {path}: {reason}; {remedy}, or check its permissions") from None
    return parse_json(text, str(path), error, remedy)


def parse_json(text: str | bytes, name: str, error: type[TruedepthError], remedy: str) -> Any:
    """The value of JSON text; `name` says in messages where it came from. See `read_json`."""
    try:
        return json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except ValueError as problem:  # malformed, bytes that are not UTF-8, or a number of thousands of digits
        raise error(f"{name} is not JSON: {problem}; {remedy}") from None
    except RecursionError:
        raise error(f"{name} is not JSON that can be read: {TOO_DEEP}; {remedy}") from None
