"""The kinds of training by name. Each is a module, imported when it is used, that has a `Kind` named `KIND`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from truedepth.errors import UsageError

if TYPE_CHECKING:
    from truedepth.training.run import Kind


KINDS = {
    "layerskip": (
        "truedepth.training.layerskip.recipe",
        "Train a model so that its early exits can draft, and its layers can be left out.",
    ),
    "recover": (
        "truedepth.training.recovery.recipe",
        "Train a model under a plan, until it works well with layers skipped, paired or merged.",
    ),
    "exit-head": (
        "truedepth.training.heads.recipe",
        "Train a small head with which a model drafts for itself; the model stays as it is.",
    ),
}
"""Where each kind is, and what it is in one line."""


def find_kind(name: str) -> Kind[Any]:
    """The kind of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in KINDS:
        raise UsageError(f"there is no training named '{name}'; choose one of: {', '.join(KINDS)}")
    kind: Kind[Any] = import_module(KINDS[name][0]).KIND
    return kind
