"""Rows to train on: items packed with boundaries between them, or one item a row."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Literal, NoReturn

import torch
from torch import Tensor
from torch.utils.data import Dataset

from truedepth.errors import TextError
from truedepth.training.data.tokenized import TokenizedItems

IGNORED = -100
"""The label of a token that the loss leaves out."""

Piece = tuple[int, int, int]
"""An item's number, and where a piece of it starts and stops among all tokens."""


class TokenRows(Dataset[dict[str, Tensor]]):
    """Rows of at most `length` tokens, as dicts of

    - `input_ids` (T,) int64;
    - `labels` (T,) int64: the same, `IGNORED` where the loss leaves them out. transformers shifts them itself. The
      first token of an item has none, since nothing of its own item comes before it;
    - `position_ids` (T,) int64, from 0 at the start of each item, by which attention keeps items apart;
    - `row` () int64: the row's number;
    - `response_start` () int64, in unpacked rows only: the first token in the loss. What comes before is the prompt.

    A document that is longer than a row goes on in the next one. The next piece begins with the last token of the one
    before, so that every token is predicted once; its positions begin at 0 again.

    Args:
        items: the tokens.
        length: tokens of a row.
        packed: fill rows with several items. Otherwise each row is one item, or a piece of a document.
        too_long: what to do with a conversation or response that is longer than a row.
        pad_id: the token that `collate` fills rows up with.

    Raises:
        TextError: an item is too long (with file and line), or no item is left.
    """

    def __init__(
        self,
        items: TokenizedItems,
        length: int,
        *,
        packed: bool = True,
        too_long: Literal["refuse", "drop"] = "refuse",
        pad_id: int = 0,
    ) -> None:
        self.items, self.length, self.packed, self.pad_id = items, length, packed, pad_id
        documents, wholes = _pieces(items, length, fill=packed, drop=too_long == "drop")
        self._rows = documents + (_best_fit(wholes, length) if packed else [[piece] for piece in wholes])
        if not self._rows:
            raise TextError(f"no item of the training text fits into {length} tokens; raise the length")
        self.lengths = torch.tensor([sum(stop - start for _, start, stop in row) for row in self._rows])  # (rows,)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        ids, labels, positions = [], [], []
        for _, start, stop in self._rows[row]:
            piece = self.items.ids[start:stop].long()  # (t,)
            label = piece.masked_fill(~self.items.loss_mask[start:stop], IGNORED)
            label[0] = IGNORED
            ids.append(piece)
            labels.append(label)
            positions.append(torch.arange(stop - start))
        fields = {
            "input_ids": torch.cat(ids),
            "labels": torch.cat(labels),
            "position_ids": torch.cat(positions),
            "row": torch.tensor(row),
        }
        if not self.packed:
            fields["response_start"] = (fields["labels"] != IGNORED).int().argmax()
        return fields

    def where(self, row: int) -> str:
        """Where the items of a row came from, in words."""
        return "; ".join(dict.fromkeys(str(self.items.where(item)) for item, _, _ in self._rows[row]))

    def collate(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Rows of one length: (B, T) each, (B,) what has one number a row.

        Packed rows are filled up to `length`, others to the longest of the batch. The filling is an item of its own
        that is not in the loss, so no attention mask is needed. Give none: transformers keeps items apart by their
        positions only where there is no mask and no cache.
        """
        longest = self.length if self.packed else max(len(row["input_ids"]) for row in rows)
        return {name: torch.stack([filled(row[name], name, longest, self.pad_id) for row in rows]) for name in rows[0]}


def filled(values: Tensor, name: str, length: int, pad_id: int = 0) -> Tensor:
    """A field of a row, (T, ...), filled up to `length`: as an item of its own that is not in the loss."""
    missing = length - len(values) if values.dim() else 0
    if not missing:
        return values
    if name == "position_ids":
        return torch.cat([values, torch.arange(missing)])
    return torch.cat([values, values.new_full((missing, *values.shape[1:]), IGNORED if name == "labels" else pad_id)])


def _pieces(items: TokenizedItems, length: int, *, fill: bool, drop: bool) -> tuple[list[list[Piece]], list[Piece]]:
    """Rows of documents, and the items that may not be cut.

    Args:
        fill: a document begins in the row in which the one before ended.
        drop: leave out what is too long instead of refusing it.
    """
    rows: list[list[Piece]] = []
    wholes: list[Piece] = []
    room = 0
    start = 0
    for item, (stop, divisible) in enumerate(zip(items.stops.tolist(), items.divisible.tolist(), strict=True)):
        if divisible:
            room = _cut(rows, (item, start, stop), room if fill else 0, length)
        elif stop - start <= length:
            wholes.append((item, start, stop))
        elif not drop:
            _refuse_long(items, item, length)
        start = stop
    return rows, wholes


def _refuse_long(items: TokenizedItems, first: int, length: int) -> NoReturn:
    """Name the first item that is longer than a row, and say how many there are."""
    lengths = items.stops.diff(prepend=items.stops.new_zeros(1))
    long = lengths[(lengths > length) & ~items.divisible]
    others = f"; so have {len(long) - 1} others, up to {int(long.max())}" if len(long) > 1 else ""
    raise TextError(
        f"{items.where(first)} has {int(lengths[first])} tokens, and a row has {length}{others}; raise the length, "
        "shorten the item, or leave such items out with 'too_long: drop'"
    )


def _cut(rows: list[list[Piece]], document: Piece, room: int, length: int) -> int:
    """Put a document into the last row as far as there is room, and into new ones; returns the room left."""
    item, start, stop = document
    while stop - start > 1:  # a piece of one token has nothing to predict
        if room < 2:
            rows.append([])
            room = length
        end = min(start + room, stop)
        rows[-1].append((item, start, end))
        room -= end - start
        if end == stop:
            break
        start = end - 1
    return room


def _best_fit(pieces: Sequence[Piece], length: int) -> list[list[Piece]]:
    """Pack pieces, the longest first, each into the fullest row that has room for it."""
    rows: list[list[Piece]] = []
    open_rows: list[tuple[int, int]] = []  # room and row, the fullest first
    for piece in sorted(pieces, key=lambda piece: (piece[1] - piece[2], piece[0])):
        size = piece[2] - piece[1]
        index = bisect_left(open_rows, (size, 0))
        if index == len(open_rows):
            rows.append([])
            room, row = length, len(rows) - 1
        else:
            room, row = open_rows.pop(index)
        rows[row].append(piece)
        insort(open_rows, (room - size, row))
    return rows
