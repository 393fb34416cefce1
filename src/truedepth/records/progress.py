"""How long work reports how far it is: a callable that library functions take and the command line implements."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from threading import Event, Thread

Progress = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""`progress(description, total)` opens a task of `total` steps; call what it yields after each step."""

INTERVAL = 5.0
"""Seconds between the lines of a task where there is no terminal."""


def silent(description: str, total: int) -> AbstractContextManager[Callable[[], None]]:
    """A `Progress` that shows nothing."""
    return nullcontext(lambda: None)


@contextmanager
def terminal(description: str, total: int) -> Iterator[Callable[[], None]]:
    """A `Progress` bar on standard error, gone when the task ends. Plain lines where it is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    if not console.is_terminal:
        # Work of one step is often over at once, and then says nothing.
        with lines(
            description, total, partial(console.print, markup=False, highlight=False, soft_wrap=True), begin=total > 1
        ) as step:
            yield step
        return
    counted = (BarColumn(), MofNCompleteColumn()) if total > 1 else (SpinnerColumn(),)
    columns = (TextColumn("{task.description}", markup=False), *counted, TimeElapsedColumn())
    with Bars(*columns, console=console, transient=True) as bars:
        task = bars.add_task(description, total=total)
        yield lambda: bars.advance(task)


@contextmanager
def lines(
    description: str, total: int, write: Callable[[str], object], *, begin: bool = True
) -> Iterator[Callable[[], None]]:
    """A task as lines: one at its beginning, and one every `INTERVAL` seconds, however long a step takes.

    Args:
        write: is given each line, from a thread of its own but for the first.
        begin: whether to write the line of the beginning.
    """
    began, done, ended = time.monotonic(), 0, Event()

    def advance() -> None:
        nonlocal done
        done += 1

    def tell() -> None:
        while not ended.wait(INTERVAL):
            steps = f"{done} of {total}, " if total > 1 else ""
            write(f"{description}: {steps}{time.monotonic() - began:.0f} s")

    if begin:
        write(f"{description} ...")
    teller = Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield advance
    finally:
        ended.set()
        teller.join()
