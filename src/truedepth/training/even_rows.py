"""Held-out rows in a number that every rank gets the same share of."""

from __future__ import annotations

from collections.abc import Sized
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from truedepth.training.tokens import IGNORED


class EvenRows(Dataset[dict[str, Tensor]]):
    """Rows, and after them as many without any learnt token as make their number a multiple.

    Ranks take steps together, so each needs as many batches as the others. Rows without learnt tokens change no mean.
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
