"""Prompts and responses apart, as plans with `prefill="full"` run them: first the prompts, then the responses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from truedepth.training.data.rows import IGNORED


@dataclass(frozen=True, slots=True)
class Passes:
    """Rows cut in two: prompts that end in the same column, and responses that begin in the same one.

    Attributes:
        prompts, prompt_positions: (B, P) int64; shorter prompts are filled up at the left.
        responses, response_positions, labels: (B, R) int64; shorter responses are filled up at the right, where
            `labels` are `IGNORED`.
        seen: (B, P + R) int64, zero where a prompt is filled up.
    """

    prompts: Tensor
    prompt_positions: Tensor
    responses: Tensor
    response_positions: Tensor
    labels: Tensor
    seen: Tensor

    @property
    def prompt_seen(self) -> Tensor:
        """(B, P)."""
        return self.seen[:, : self.prompts.shape[1]]


def cut(ids: Tensor, labels: Tensor, starts: Tensor) -> Passes:
    """Cut rows where their responses start.

    Args:
        ids, labels: (B, T) int64.
        starts: (B,) int64, from 1 to T - 1.
    """
    batch, length = ids.shape
    longest = int(starts.max())
    columns = torch.arange(longest, device=ids.device) - longest + starts[:, None]  # (B, P), below 0: filled up
    prompts = ids.gather(1, columns.clamp(min=0))
    rest = length - int(starts.min())
    positions = starts[:, None] + torch.arange(rest, device=ids.device)  # (B, R), from T on: filled up
    inside = positions < length
    positions = positions.clamp(max=length - 1)
    seen = torch.cat([columns >= 0, torch.ones(batch, rest, dtype=torch.bool, device=ids.device)], 1)
    return Passes(
        prompts=prompts,
        prompt_positions=columns.clamp(min=0),
        responses=ids.gather(1, positions),
        response_positions=starts[:, None] + torch.arange(rest, device=ids.device),
        labels=labels.gather(1, positions).masked_fill(~inside, IGNORED),
        seen=seen.long(),
    )
