"""What a person sees while the main job runs: the plans taken so far, and how far the present work is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from math import exp
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from truedepth.records.progress import lines

if TYPE_CHECKING:
    from truedepth.search.walk import SearchStep


class JobDisplay:
    """A live table with a progress bar on standard error, or plain lines where that is not a terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
        )
        self._steps: list[SearchStep] = []
        self._phase = ""
        self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=4)

    def __enter__(self) -> JobDisplay:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live.is_started:
            self._live.stop()

    def progress(self, description: str, total: int) -> AbstractContextManager[Callable[[], None]]:
        """The `Progress` that library functions take."""
        return self._bar(description, total) if self._console.is_terminal else self._lines(description, total)

    def on_step(self, step: SearchStep) -> None:
        """Show a plan that the search has taken. A search that begins again replaces the table."""
        if step.plan.is_full:
            self._steps = []
        self._steps.append(step)
        if not self._console.is_terminal:
            self._phase = ""
            self._console.print(
                f"{step.plan.effective_depth} stages, predicted {step.speedup:.2f}x, "
                f"perplexity {exp(step.loss):.2f} on {step.text} text: {step.plan}",
                soft_wrap=True,
                highlight=False,
            )

    def _render(self) -> Group:
        table = Table("stages", "predicted speedup", "perplexity", "on text", "plan", title="The search so far")
        for column in table.columns[:3]:
            column.justify = "right"
        for step in self._steps:
            figures = (f"{step.plan.effective_depth}", f"{step.speedup:.2f}x", f"{exp(step.loss):.2f}")
            table.add_row(*figures, step.text, str(step.plan))
        return Group(table, self._bars) if self._steps else Group(self._bars)

    @contextmanager
    def _bar(self, description: str, total: int) -> Iterator[Callable[[], None]]:
        task = self._bars.add_task(description, total=total)
        try:
            yield lambda: self._bars.advance(task)
        finally:
            self._bars.remove_task(task)

    def _lines(self, description: str, total: int) -> AbstractContextManager[Callable[[], None]]:
        # Judging goes on for many steps: its line is printed once between two of them.
        begin = description != self._phase
        self._phase = description
        return lines(description, total, partial(self._console.print, markup=False, highlight=False), begin=begin)
