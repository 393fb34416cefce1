"""Figures of `decoding.py` as tables in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def print_comparison(model: str, run: Mapping[str, Any]) -> None:
    """What `Compared.to_dict` gives."""
    gigabytes = run["bandwidth_bytes_per_second"] / 1e9
    table = Table(title=f"{model}, batch {run['batch']} (memory read at {gigabytes:.1f} GB/s)")
    table.add_column("entrant")
    columns = ("tok/s", "low", "high", "first token", "accepted", "tok/pass", "of limit", "x transformers", "x plain")
    for name in columns:
        table.add_column(name, justify="right")
    for name, found in run["entrants"].items():
        speed = found["decode_tokens_per_second"]
        table.add_row(
            name,
            *(f"{speed[part]:.1f}" for part in ("median", "low", "high")),
            f"{1000 * found['time_to_first_token_seconds']['median']:.0f} ms",
            "" if found["acceptance"] is None else f"{found['acceptance']:.0%}",
            f"{found['tokens_per_pass']:.2f}",
            f"{found['share_of_bandwidth_limit']:.0%}",
            _ratio(found["ratio_to_best_plain_of_transformers"]),
            _ratio(found["ratio_to_plain_truedepth"]),
        )
    _console().print(table)


def print_rows(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Plain rows; of a spread its median."""
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    _console().print(table)


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        value = value["median"]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _ratio(spread: Mapping[str, float] | None) -> str:
    return "" if spread is None else f"{spread['median']:.2f}"


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=160)
