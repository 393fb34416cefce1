"""In which order rows are trained on, and how held-out rows are shared by ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from truedepth.errors import TextError
from truedepth.training.data.rows import IGNORED


class WholeSteps(Sampler[int]):
    """Rows in an order that depends on the seed and the epoch only, as many as fill whole steps.

    The rows of a step are so the same on any number of ranks, and after a resume. The few that are left over are others
    in each epoch.

    Args:
        rows: how many there are.
        per_step: how many an optimizer step takes, over all micro-batches and ranks.

    Attributes:
        epoch: to be set before each pass.

    Raises:
        TextError: there are fewer rows than one step takes.
    """

    def __init__(self, rows: int, per_step: int, seed: int) -> None:
        if rows < per_step:
            raise TextError(
                f"the training text fills {rows} rows, and a step takes {per_step}; give more text, shorter rows or a "
                "smaller batch"
            )
        self._rows, self._seed, self.epoch = rows, seed, 0
        self._count = rows // per_step * per_step

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        # A step between seeds that is larger than any number of epochs keeps runs of neighbouring seeds apart.
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self.epoch)
        yield from torch.randperm(self._rows, generator=generator)[: self._count].tolist()


class EvenRows(Dataset[dict[str, Tensor]]):
    """Rows, and after them as many without any token in the loss as make their number a multiple.

    Ranks take steps together, so each needs as many batches as the others. Such rows change no mean.
    """

    def __init__(self, rows: Dataset[dict[str, Tensor]], multiple: int) -> None:
        self._rows = rows
        self._count = len(cast(Sized, rows))
        self._even = -(-self._count // multiple) * multiple

    def __len__(self) -> int:
        return self._even

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        if row < self._count:
            return self._rows[row]
        blank = dict(self._rows[0])
        if "labels" in blank:
            blank["labels"] = torch.full_like(blank["labels"], IGNORED)
        return blank
