"""How many threads a command computes with, and how they wait: settled before PyTorch is loaded, which reads it."""

from __future__ import annotations

import os
import sys

import click

from truedepth.errors import UsageError

_COUNT, _WAITING = "OMP_NUM_THREADS", ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Variables of the environment: the number of threads, and those that say how they wait."""

_LOOKS = 1000
"""A waiting thread of PyTorch's OpenMP runtime (GNU's) looks so often before it sleeps: some ten microseconds. By
itself it spins for milliseconds, and two programs that do so on one machine keep each other from running."""


def settle_threads(_: click.Context, __: click.Parameter, asked: int | None) -> None:
    """Take so many threads, or as many as this process may really use: by affinity, control groups and cores.

    What the user has set in the environment stands, but for a number that is asked for.

    Raises:
        UsageError: more threads than there are processors.
    """
    logical = os.cpu_count() or 1
    if asked is not None and asked > logical:
        raise UsageError(f"--threads is {asked}, but this machine has {logical} processors; ask for at most {logical}")
    if "torch" in sys.modules:  # called from Python, where PyTorch has settled it
        if asked is not None:
            import torch

            torch.set_num_threads(asked)
        return
    if not any(name in os.environ for name in _WAITING):
        os.environ["GOMP_SPINCOUNT"] = str(_LOOKS)
    if asked is not None:
        os.environ[_COUNT] = str(asked)
    elif _COUNT not in os.environ:
        from loky import cpu_count

        os.environ[_COUNT] = str(cpu_count(only_physical_cores=True))


threads_option = click.option(
    "--threads",
    type=click.IntRange(1),
    metavar="N",
    expose_value=False,
    callback=settle_threads,
    help="Compute with N threads.  [default: the cores that this process may use]",
)
"""`--threads`, of every command that computes."""
