"""The kinds of training by name. Each is a module, imported when it is used, that has a `Kind` named `KIND`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from truedepth.errors import UsageError

if TYPE_CHECKING:
    from truedepth.training.run import Kind


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a kind is, and what it is in one line."""

    module: str
    summary: str


KINDS: dict[str, Entry] = {
    "layerskip": Entry(
        "truedepth.training.layerskip.recipe",
        "Train a model so that its early exits can draft, and its layers can be left out.",
    ),
    "recover": Entry(
        "truedepth.training.recovery.recipe",
        "Train a model under a plan, until it works well with layers skipped, paired or merged.",
    ),
    "exit-head": Entry(
        "truedepth.training.heads.recipe",
        "Train a small head with which a model drafts for itself; the model stays as it is.",
    ),
}


def find_kind(name: str) -> Kind[Any]:
    """The kind of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in KINDS:
        raise UsageError(f"there is no training named '{name}'; choose one of: {', '.join(KINDS)}")
    kind: Kind[Any] = import_module(KINDS[name].module).KIND
    return kind
