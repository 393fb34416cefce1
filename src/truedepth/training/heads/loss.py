"""Distilling the target's own distribution into a head, and how often the head then agrees with it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from truedepth.engine.drafts.heads.eagle_head import EagleHead
from truedepth.engine.drafts.heads.exit_head import ExitHead
from truedepth.engine.drafts.heads.projection import head_rows
from truedepth.errors import UnsupportedModelError
from truedepth.training.data.rows import IGNORED
from truedepth.training.heads.steps import Drafted, DraftingSteps, Rows


class HeadDistillation(nn.Module):
    """A head and the loss that it is trained by.

    At each drafted position, the cross-entropy between the target's distribution p over the draft vocabulary V', which
    is the softmax of its logits there, and the head's q, as in EAGLE-3:

        loss = - sum over tokens t of  sum over v in V' of  p_v(t) log q_v(t)

    over tokens after which the target chose one of V'. Of the model, only what stands around its layers is used.

    Args:
        core: the model that the head is for; it is not packed, and stays as it is.
        positions: drafted positions that the head is trained at; an exit head is the same at each, so 1.
        keep: share of drafts that go on from each position to the next, in training.

    Attributes:
        head: what is trained.
        positions: see above.
        steps: runs the head over rows.
    """

    def __init__(self, head: ExitHead | EagleHead, core: PreTrainedModel, positions: int, keep: float) -> None:
        super().__init__()
        self.head = head
        self.positions, self._keep = positions, keep
        rows = head_rows(core, head.ids)
        if rows is None:
            raise UnsupportedModelError("the model is packed for decoding; close its Engine before training a head")
        self.steps = DraftingSteps(head, core)
        self._rows = [rows]  # in a list, so that they are no part of the module
        columns = torch.full((self.steps.runner.vocabulary_size,), -1, device=head.ids.device)
        columns[head.ids] = torch.arange(len(head.ids), device=head.ids.device)
        self._columns = [columns]

    def forward(self, draw: int, **rows: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Loss and agreement at each position, as sums over all tokens of the rows that the loss is over.

        Where drafts were left out, the sums are what all are likely to come to.

        Args:
            draw: seed of which drafts go on.
            rows: see `HeadRows`.
        """
        found = []
        probs, indexes = self._target(rows)
        for drafted in self.steps.run(rows, self.positions, self._keep if self.training else 1.0, draw):
            at = indexes.gather(1, drafted.targets)  # (B, n)
            counted = drafted.loss_mask & (at >= 0)
            logits = self.head.logits(drafted.hidden[counted]).float()  # (m, V')
            loss = cross_entropy(logits, probs[at[counted]], reduction="sum")
            right = (logits.detach().argmax(-1) == self._chosen(drafted, rows, counted)).sum()
            found.append((loss / drafted.share, right / drafted.share))
        return found

    @torch.no_grad()
    def _target(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """The target's distribution over the draft vocabulary after the tokens in the loss that can be drafted.

        Returns:
            Probabilities, (m, V'), and which row of them is of each token, (B, T), -1 where none is.
        """
        runner, labels = self.steps.runner, rows["labels"]
        counted = (labels != IGNORED) & (self._columns[0][labels.clamp(min=0)] >= 0)  # (B, T)
        last = rows["last"][counted].to(runner.model.dtype)  # (m, D)
        indexes = torch.full_like(labels, -1)
        indexes[counted] = torch.arange(len(last), device=labels.device)
        return runner.logits(last, self._rows[0]).float().softmax(-1), indexes

    def _chosen(self, drafted: Drafted, rows: Rows, where: Tensor) -> Tensor:
        """The columns of what the target chose after some targets, (B, n) of bool; -1 for what cannot be drafted."""
        return self._columns[0][rows["labels"].gather(1, drafted.targets)[where]]

    @torch.no_grad()
    def agreement(self, batches: Iterable[Rows], positions: int) -> tuple[float, ...]:
        """Share of the target's choices that the head drafts right at each position, where those before were right.

        On text that the target wrote, this is how often a drafted token is accepted whose predecessors were. On other
        text the head is given the text's tokens between, which may not be those that the target would have chosen.
        """
        right, reached = [0] * positions, [0] * positions
        for rows in batches:
            alive: Any = True
            for index, drafted in enumerate(self.steps.run(rows, positions)):
                here = drafted.loss_mask & alive  # (B, T)
                hit = torch.zeros_like(here)
                logits = self.head.logits(drafted.hidden[here])
                hit[here] = logits.argmax(-1) == self._chosen(drafted, rows, here)
                reached[index] += int(here.sum())
                alive = hit
                right[index] += int(alive.sum())
        return tuple(hits / count for hits, count in zip(right, reached, strict=True) if count)
