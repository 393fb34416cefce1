"""What the ranks of a run tell each other, counted.

Everything goes through `torch.distributed`: NCCL between GPUs, gloo between CPUs.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from operator import sub
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from truedepth.errors import RankError
from truedepth.records.messages import one_line


@dataclass
class Traffic:
    """How often the ranks have communicated.

    Attributes:
        all_reduces: sums over all ranks, of hidden states.
        all_gathers: of the logits, of which each rank computes a part.
        broadcasts: of what rank 0 chose for all.
    """

    all_reduces: int = 0
    all_gathers: int = 0
    broadcasts: int = 0

    def since(self, before: Traffic) -> Traffic:
        """What came after an earlier count."""
        return Traffic(*map(sub, astuple(self), astuple(before)))

    def copy(self) -> Traffic:
        return replace(self)


class Ranks(Protocol):
    """The ranks that run one model together, seen from one of them."""

    rank: int
    size: int
    traffic: Traffic

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of all ranks' tensors of this shape, the same bits on all; may overwrite the one given."""
        ...

    def gather(self, tensor: Tensor) -> Tensor:
        """All ranks' tensors of this shape, in the order of the ranks: (ranks, ...)."""
        ...


class GroupRanks:
    """The ranks of the default process group.

    Attributes:
        backend: `nccl` or `gloo`.
        device: where this rank computes.

    Raises:
        RankError: by every method, where another rank has gone.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.backend: str = dist.get_backend()
        self.device = device
        self.traffic = Traffic()

    def sum(self, tensor: Tensor) -> Tensor:
        tensor = tensor.contiguous()
        with _rank_errors():
            dist.all_reduce(tensor)
        self.traffic.all_reduces += 1
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        gathered = tensor.new_empty(self.size, *tensor.shape)
        with _rank_errors():
            dist.all_gather(list(gathered.unbind()), tensor.contiguous())
        self.traffic.all_gathers += 1
        return gathered

    def first_choice(self, number: int) -> int:
        """Rank 0's number, on every rank."""
        chosen = torch.tensor([number], dtype=torch.int64, device=self.device)
        with _rank_errors():
            dist.broadcast(chosen, src=0)
        self.traffic.broadcasts += 1
        return int(chosen.item())

    def wait(self) -> None:
        """Until all ranks are here. Not counted: no run of a model needs it."""
        with _rank_errors():
            dist.barrier()


class _rank_errors:
    """Turns the failure of a collective, which the backends raise as RuntimeError, into an error of ours."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, RuntimeError):
            reason = one_line(error)
            raise RankError(f"another rank has stopped or cannot be reached ({reason}); see what it says") from error
