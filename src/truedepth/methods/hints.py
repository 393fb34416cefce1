"""What error messages suggest instead of a value that cannot be used."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """' (did you mean ...?)' where one of `choices` is close to `word`, else nothing."""
    close = difflib.get_close_matches(word, list(choices), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def nearest(value: int, choices: range) -> str:
    """The closest of `choices` below and above `value`, such as '12 or 14'; `choices` is not empty."""
    below = max((choice for choice in choices if choice <= value), default=None)
    above = min((choice for choice in choices if choice >= value), default=None)
    return " or ".join(str(choice) for choice in dict.fromkeys((below, above)) if choice is not None)
