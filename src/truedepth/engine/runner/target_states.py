"""The target's hidden states at chosen depths, kept while a step runs it anyway."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from truedepth.plan import Stage


class TargetStates:
    """What one step hands out of the target between its stages.

    Args:
        depths: numbers of stages after which states are wanted.
    """

    def __init__(self, depths: Collection[int] = ()) -> None:
        self._depths = frozenset(depths)
        self._kept: dict[int, list[Tensor]] = {}

    def cut(self, stages: Sequence[Stage], first: int) -> Iterator[tuple[Sequence[Stage], int]]:
        """Stages in parts that end where states are wanted, each with the depth that it reaches.

        Args:
            stages: of the target, from its stage `first` on.
        """
        end = first + len(stages)
        at = first
        for depth in sorted(depth for depth in self._depths if first < depth < end):
            yield stages[at - first : depth - first], depth
            at = depth
        if at < end:
            yield stages[at - first :], end

    def keep(self, depth: int, hidden: Tensor) -> None:
        """Remember what came out at a depth, (B, T, D), if it is wanted."""
        if depth in self._depths:
            self._kept.setdefault(depth, []).append(hidden)

    def __contains__(self, depth: int) -> bool:
        """Whether any token went through at a depth where states are kept."""
        return depth in self._kept

    def at(self, *depths: int) -> Tensor:
        """The states of all tokens at some depths, side by side: (B, T, D * number of depths).

        Raises:
            KeyError: nothing was kept at one of them.
        """
        return torch.cat([torch.cat(self._kept[depth], 1) for depth in depths], -1)
