"""`truedepth measure` on several ranks, each of which holds a part of the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truedepth.cli.tables import add_speeds, compared, comparison_table, print_measurement
from truedepth.plan import DepthPlan

if TYPE_CHECKING:
    from rich.table import Table

    from truedepth.measuring.on_ranks import RanksMeasurement
    from truedepth.parallel.ranks import GroupRanks


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
    """Time the plan in turns with the unmodified model, each shared by all ranks, and judge it if asked."""
    from truedepth.evaluation.quality import quality_on_ranks
    from truedepth.evaluation.texts import Sizes, read_texts
    from truedepth.measuring.on_ranks import measure_on_ranks
    from truedepth.parallel.load import load_split
    from truedepth.records.progress import terminal

    loading["device"] = ranks.device
    parts = load_split(model, lambda num_layers: compared(read(num_layers)), ranks, **loading)
    measurement = measure_on_ranks(parts, ranks, **sizes, progress=terminal)
    qualities = {}
    if quality:
        qualities = quality_on_ranks(parts, read_texts(text, parts.tokenizer, Sizes()).test, terminal)
    print_measurement(parts.name, measurement, qualities, [_table(parts.name, measurement)], as_json=as_json)


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
