"""What a person sees while a training runs: how far it is, how fast, and the newest figures of each exit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from truedepth.report.format import duration, number, percent
from truedepth.report.terminal import bare_table
from truedepth.training.trainer.figures import exit_name, exit_of, position_name, position_of

if TYPE_CHECKING:
    from truedepth.training.trainer.pace import Snapshot

_LESS = ("loss", "eval_loss", "epoch", "tokens_per_second")
"""Figures that are shown apart."""


class TrainingDisplay:
    """A live table on standard error, or a line with what is new for each log where that is not a terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, refresh_per_second=4)
        self._snapshot: Snapshot | None = None

    def __enter__(self) -> TrainingDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live.is_started:
            self._live.stop()

    def on_snapshot(self, snapshot: Snapshot) -> None:
        """Show how the training stands."""
        before, self._snapshot = self._snapshot, snapshot
        if self._console.is_terminal:
            if not self._live.is_started:
                self._live.start()
            self._live.update(render(snapshot))
            return
        known = before.figures if before else {}
        fresh = {name: value for name, value in snapshot.figures.items() if known.get(name) != value}
        if fresh:
            self._console.print(as_line(replace(snapshot, figures=fresh)), soft_wrap=True, highlight=False)


def render(snapshot: Snapshot) -> Group:
    """A bar with the pace, a table of exits or drafted positions, and the other figures in a line."""
    bar = Table.grid(padding=(0, 1))
    progress = ProgressBar(total=max(snapshot.total_steps, 1), completed=snapshot.step, width=30)
    bar.add_row(f"step {snapshot.step:,} of {snapshot.total_steps:,}", progress, _pace(snapshot))
    others = {
        name: value
        for name, value in snapshot.figures.items()
        if name not in _LESS and exit_of(name) is None and position_of(name) is None
    }
    parts: list[Table | Text] = [bar]
    if any(name in snapshot.figures for name in ("loss", "eval_loss")):
        parts.append(_table(snapshot))
    if others:
        words = ", ".join(f"{name.replace('_', ' ')} {number(value)}" for name, value in others.items())
        parts.append(Text(words, "dim"))
    return Group(*parts)


def as_line(snapshot: Snapshot) -> str:
    """The same on one line."""
    figures = ", ".join(
        f"{name.replace('_', ' ')} {percent(value) if 'agreement' in name else number(value, 4)}"
        for name, value in snapshot.figures.items()
        if name not in ("epoch", "tokens_per_second", "grad_norm", "learning_rate")
    )
    return f"step {snapshot.step} of {snapshot.total_steps}: {figures}; {_pace(snapshot)}"


def _pace(snapshot: Snapshot) -> str:
    if not snapshot.tokens_per_second:
        return "beginning"
    left = f"{duration(snapshot.seconds_left)} left" if snapshot.seconds_left else "done"
    return f"{number(snapshot.tokens_per_second)} tokens/s, {left}"


def _table(snapshot: Snapshot) -> Table:
    """A row for the loss in training, and for each exit or drafted position; held-out figures beside the others."""
    exits = sorted({found[1] for name in snapshot.figures if (found := exit_of(name))})
    positions = sorted({found[1] for name in snapshot.figures if (found := position_of(name))})
    names = [
        ("training", "loss", ""),
        *((f"exit {layers}", exit_name("loss", layers), exit_name("agreement", layers)) for layers in exits),
        *(
            (f"drafted token {position}", position_name("loss", position), position_name("agreement", position))
            for position in positions
        ),
    ]
    columns = (("loss", "", 1), ("held-out loss", "eval_", 1), ("agreement", "", 2), ("held-out", "eval_", 2))
    shown = [
        (title, prefix, column)
        for title, prefix, column in columns
        if any(f"{prefix}{row[column]}" in snapshot.figures for row in names)
    ]
    table = bare_table("", *(title for title, _, _ in shown))
    for row in names:
        cells = (_cell(snapshot, f"{prefix}{row[column]}") for _, prefix, column in shown)
        table.add_row(row[0], *cells)
    return table


def _cell(snapshot: Snapshot, name: str) -> str:
    if name not in snapshot.figures:
        return ""
    value = snapshot.figures[name]
    return percent(value, 1) if "agreement" in name else number(value, 4)
