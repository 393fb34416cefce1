"""How errors put lists and other libraries' messages into one line, in our own words where theirs would mislead."""

from __future__ import annotations

SHOWN = 5
TOO_DEEP = "values lie too deep in each other"
NEEDS_CODE = (
    "it needs Python code that comes with it; if you trust that code, allow it by --trust-remote-code, "
    "in Python by trust_remote_code=True"
)
_ALLOCATION = ("can't allocate memory", "not enough memory", "Invalid buffer size")
"""Parts of the messages with which PyTorch says that the main memory ran out: it raises no class of its own."""


def listed(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:SHOWN])
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown


def one_line(error: BaseException) -> str:
    """What an exception says, on one line, without a closing stop."""
    said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if isinstance(error, RecursionError):
        return TOO_DEEP
    if out_of_memory(error):
        return "the memory ran out"
    if isinstance(error, KeyError):
        return f"there is no {said}"
    return NEEDS_CODE if "trust_remote_code" in said else said


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there was no memory left, of the machine or of a device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _ALLOCATION)
