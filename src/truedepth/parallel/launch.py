"""Starting and ending a run over several ranks, as `torchrun` starts them.

Imports torch only where there are several ranks: the command line asks here at every start.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from truedepth.errors import RankError, UsageError

if TYPE_CHECKING:
    from truedepth.parallel.ranks import GroupRanks

_REPORTS = "truedepth/reports"
"""How many ranks have asked to report the end of the run, in the store that all share."""

_PATIENCE = 5.0
"""Seconds that a rank which only saw another one stop leaves that one to say why."""


@dataclass
class _LaunchedRun:
    """The run that this process is a rank of."""

    store: Any
    stderr: TextIO


_run: _LaunchedRun | None = None


def started_ranks() -> int:
    """How many ranks `torchrun` has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


@contextmanager
def joined_ranks(device: str) -> Iterator[GroupRanks]:
    """This process as one of the started ranks. All but rank 0 are silent until `may_report` lets them speak.

    Args:
        device: as `truedepth.load` takes it; `auto` and `cuda` mean the GPU of the process's local rank.

    Raises:
        UsageError: a device that is not there, or over which no ranks can run.
        RankError: the ranks do not find each other.
    """
    global _run  # noqa: PLW0603  # `may_report` is asked when all that knew of the run has unwound
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    from truedepth.parallel.ranks import GroupRanks

    own_device = _device(device)
    stdout, stderr = sys.stdout, sys.stderr
    try:
        store, rank, size = next(iter(rendezvous("env://")))
        _run = _LaunchedRun(PrefixStore("truedepth", store), stderr)
        backend = dist.get_default_backend_for_device(own_device)
        bound = own_device if own_device.type == "cuda" else None
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, device_id=bound)
    except (RuntimeError, ValueError) as error:
        raise RankError(f"the ranks do not find each other ({error}); start them all by one torchrun") from error
    if own_device.type == "cuda":
        torch.cuda.set_device(own_device)
    try:
        if rank:
            with open(os.devnull, "w", encoding="utf-8") as nowhere:
                sys.stdout = sys.stderr = nowhere
                yield GroupRanks(own_device)
        else:
            yield GroupRanks(own_device)
    finally:
        sys.stdout, sys.stderr = stdout, stderr
        with suppress(RuntimeError):
            dist.destroy_process_group()


def _device(name: str) -> Any:
    from truedepth.models.loading.placement import resolve_device

    device = resolve_device(name)
    if device.type == "mps":
        if name == "auto":
            return resolve_device("cpu")
        raise UsageError("several ranks run on CUDA or on the CPU, not on mps; give --device cpu, or start one process")
    if device.type == "cuda" and name in ("auto", "cuda"):
        return resolve_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    return device


def may_report(error: BaseException) -> bool:
    """Whether this process says how the run ended. Of several ranks just one does, and rather the one that failed."""
    if _run is None:
        return True
    if isinstance(error, RankError):
        time.sleep(_PATIENCE)
    with suppress(RuntimeError):  # the store has gone with the process that kept it
        return bool(_run.store.add(_REPORTS, 1) == 1)
    return False
