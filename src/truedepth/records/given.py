"""Arguments of a wrong type, refused by name where they are given."""

from __future__ import annotations

from typing import Any

from truedepth.errors import TruedepthError, UsageError


def require_type(
    name: str, value: Any, kinds: type | tuple[type, ...], must: str, error: type[TruedepthError] = UsageError
) -> None:
    """Refuse what is of another type than some.

    Args:
        name: of the argument.
        kinds: what it may be. `bool` counts as a number only where it is named.
        must: what it must be, in words.

    Raises:
        TruedepthError: (of class `error`) it is of another type.
    """
    known = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in known and object not in known):
        said = repr(value)
        shown = said if len(said) <= 60 else f"of type {type(value).__name__}"
        raise error(f"{name} is {shown}; it must be {must}")
