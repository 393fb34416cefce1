"""How long work reports how far it is: a callable that library functions take and the command line implements."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

Progress = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""`progress(description, total)` opens a task of `total` steps; call what it yields after each step."""


def silent(description: str, total: int) -> AbstractContextManager[Callable[[], None]]:
    """A `Progress` that shows nothing."""
    return nullcontext(lambda: None)


@contextmanager
def terminal(description: str, total: int) -> Iterator[Callable[[], None]]:
    """A `Progress` bar on standard error, gone when the task ends. Plain lines where it is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(f"{description} ...")
        yield lambda: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console, transient=True) as bars:
        task = bars.add_task(description, total=total)
        yield lambda: bars.advance(task)
