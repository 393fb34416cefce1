"""How commands run under `torchrun`: as one rank of several that share the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from truedepth.errors import UsageError
from truedepth.parallel.launch import joined_ranks, started_ranks

if TYPE_CHECKING:
    from truedepth.parallel.ranks import GroupRanks


def join_ranks(device: str, refused: Mapping[str, Any]) -> GroupRanks | None:
    """The ranks that this command is one of, until it ends; None in a single process.

    Args:
        refused: options that do not work on several ranks, by name, with what was given for them.

    Raises:
        UsageError: one of them was given, or the device cannot be shared.
        RankError: the ranks do not find each other.
    """
    if started_ranks() == 1:
        return None
    ranks = click.get_current_context().with_resource(joined_ranks(device))
    given = [name for name, value in refused.items() if value]
    if given:
        raise UsageError(f"{given[0]} does not work on several ranks; leave it out, or start a single process")
    return ranks
