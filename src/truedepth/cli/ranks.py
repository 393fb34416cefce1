"""How commands run under `torchrun`: as one rank of several that share the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from truedepth.cli.options import print_json
from truedepth.cli.tables import UNMODIFIED, add_speeds, comparison_table, quality_table
from truedepth.errors import UsageError
from truedepth.parallel.launch import joined_ranks, started_ranks
from truedepth.plan import DepthPlan

if TYPE_CHECKING:
    from rich.table import Table

    from truedepth.measuring.on_ranks import RanksMeasurement
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


def measure_shared(
    model: str,
    read: Callable[[int], DepthPlan],
    ranks: GroupRanks,
    sizes: dict[str, int],
    text: Path | None,
    *,
    quality: bool,
    as_json: bool,
    **loading: Any,
) -> None:
    """`truedepth measure` on several ranks: the plan in turns with the unmodified model, each shared by all ranks."""
    from rich.console import Console

    from truedepth.evaluation.quality import quality_on_ranks
    from truedepth.evaluation.texts import Sizes, read_texts
    from truedepth.measuring.on_ranks import measure_on_ranks
    from truedepth.parallel.load import load_split
    from truedepth.records.progress import terminal

    def plans_for(num_layers: int) -> dict[str, DepthPlan]:
        chosen, full = read(num_layers), DepthPlan.full(num_layers)
        return {UNMODIFIED: full} if chosen.is_full else {UNMODIFIED: full, "plan": chosen}

    loading["device"] = ranks.device
    parts = load_split(model, plans_for, ranks, **loading)
    measurement = measure_on_ranks(parts, ranks, **sizes, progress=terminal)
    qualities = {}
    if quality or text is not None:
        qualities = quality_on_ranks(parts, read_texts(text, parts.tokenizer, Sizes()).report, terminal)
    if as_json:
        report = {"model": parts.name, **measurement.to_dict()}
        for name, own in qualities.items():
            report["plans"][name]["quality"] = asdict(own)
        print_json(report)
        return
    console = Console()
    console.print(_table(parts.name, measurement))
    if qualities:
        console.print(quality_table(qualities))


def _table(model: str, measurement: RanksMeasurement) -> Table:
    """A column for each plan, a row for each figure."""
    table = comparison_table(
        f"{model} on {measurement.ranks} ranks over {measurement.backend}: {measurement.device}",
        f"; {measurement.threads} threads a rank.",
        measurement.comparison,
    )
    table.add_row("stages", *(str(plan.effective_depth) for plan in measurement.plans.values()))
    counted = (str(traffic.all_reduces) for traffic in measurement.token_traffic.values())
    table.add_row("all-reduces a token, counted", *counted)
    add_speeds(table, measurement.comparison)
    return table
