"""How errors about models put lists and other libraries' messages into one line."""

from __future__ import annotations

SHOWN = 5


def listed(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:SHOWN])
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown


def one_line(error: Exception) -> str:
    """What an exception says, on one line, without a closing stop."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
