"""Rows of hidden states to train a head on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from truedepth.engine.drafts.heads.eagle_head import EagleHead
from truedepth.engine.drafts.heads.exit_head import ExitHead
from truedepth.errors import TextError
from truedepth.training.data.rows import IGNORED, filled
from truedepth.training.heads.states import NOTHING, States
from truedepth.training.results import RowsRecord


class HeadRows(Dataset[dict[str, Tensor]]):
    """Rows of `length` tokens, one after the other through all passages, as dicts of

    - `input_ids` (T,) int64, and `position_ids` (T,) int64, from 0 at the start of each passage. A passage that a row's
      end cuts goes on in the next row at its own positions;
    - `labels` (T,) int64: what the model chose after each token, `IGNORED` where the loss leaves it out;
    - `states` (T, W) bfloat16: what the head is given with each token. For an exit head, the states after its exit. For
      an EAGLE head, those at its depths of the token before, side by side; zeros at the start of a passage;
    - `last` (T, D) bfloat16: the model's last states, from which its distribution after each token follows.

    The last row is filled up with tokens of a passage of its own, which is not in the loss.

    Args:
        num_layers: of the model.
        sources: of the text, in words.

    Raises:
        TextError: there are no tokens to train on.
    """

    def __init__(
        self,
        states: States,
        head: ExitHead | EagleHead,
        num_layers: int,
        length: int,
        sources: Sequence[str] = (),
    ) -> None:
        self._states, self._length, self._last, self._sources = states, length, num_layers, tuple(sources)
        self._depths: Sequence[int] = depths_of(head)
        self._shifted = isinstance(head, EagleHead)
        if bool((states.chosen == NOTHING).all()):
            raise TextError("the text leaves nothing to train the head on; give text or prompts with answers")

    @property
    def record(self) -> RowsRecord:
        """What is said of the rows in results."""
        return RowsRecord(
            sources=list(self._sources),
            items=int((self._states.positions == 0).sum()),
            rows=len(self),
            tokens=len(self._states),
            loss_tokens=int((self._states.chosen != NOTHING).sum()),
        )

    def __len__(self) -> int:
        return math.ceil(len(self._states) / self._length)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        start = row * self._length
        stop = min(start + self._length, len(self._states))
        here = slice(start, stop)
        chosen, positions = self._states.chosen[here], self._states.positions[here]
        fields = {
            "input_ids": self._states.ids[here],
            "labels": chosen.masked_fill(chosen == NOTHING, IGNORED),
            "position_ids": positions,
            "states": self._given(start, stop, positions),
            "last": self._states.at([self._last], start, stop),
        }
        return {name: filled(value, name, self._length) for name, value in fields.items()}

    def _given(self, start: int, stop: int, positions: Tensor) -> Tensor:
        if not self._shifted:
            return self._states.at(self._depths, start, stop)
        before = self._states.at(self._depths, max(start - 1, 0), max(stop - 1, 1))
        if start == 0:  # nothing stands before the first token, which is at position 0
            before = torch.cat([before[:1], before])[:stop]
        return before.masked_fill(positions[:, None] == 0, 0.0)


def depths_of(head: ExitHead | EagleHead) -> tuple[int, ...]:
    """The depths whose states a head is given."""
    return head.depths if isinstance(head, EagleHead) else (head.exit.effective_depth,)
