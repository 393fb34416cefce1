"""How a head's last state becomes logits of its draft vocabulary: mostly by rows that the model has already."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from truedepth.engine.cpu.freed import is_freed
from truedepth.engine.runner.model_runner import ModelRunner
from truedepth.families import family_of


class SharedRows(nn.Module):
    """The model's own rows of the LM head, with a trained change of low rank or none.

    logits = W x + B A x: W are the model's rows, which no file of a head repeats and no training changes; A and B are
    the change (LoRA, arXiv 2106.09685, equation 3), which starts as none at all.

    Args:
        hidden_size: D.
        size: V', rows.
        rank: of the change; 0: none.
    """

    def __init__(self, hidden_size: int, size: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(hidden_size, rank, bias=False) if rank else None
        self.up = nn.Linear(rank, size, bias=False) if rank else None
        self._rows: list[nn.Linear] = []  # in a list, so that they are no part of the head

    @property
    def rows(self) -> list[nn.Linear]:
        """W, once it is bound."""
        return self._rows

    def bind(self, rows: nn.Linear) -> None:
        """Take W, a linear module with the model's rows."""
        self._rows = [rows]

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) to (..., V')."""
        logits: Tensor = self._rows[0](hidden)
        return logits if self.up is None or self.down is None else logits + self.up(self.down(hidden))


def head_rows(model: PreTrainedModel, ids: Tensor) -> nn.Linear | None:
    """Some rows of a model's LM head, (V',), int64; None while the model is packed: its engine's runner has them."""
    head: Any = model.get_submodule(family_of(model.config).head)
    return None if is_freed(head.weight) else ModelRunner(model).head_rows(ids.to(head.weight.device))


def fresh_change(projection: SharedRows, like: Tensor) -> dict[str, Tensor]:
    """Weights of a change that is none yet, by name; always the same. `like` gives their type and device."""
    if projection.up is None or projection.down is None:
        return {}
    rank, hidden_size = projection.down.out_features, projection.down.in_features
    generator = torch.Generator().manual_seed(0)
    down = torch.randn(rank, hidden_size, generator=generator) / hidden_size**0.5
    return {"down.weight": down.to(like), "up.weight": like.new_zeros(projection.up.out_features, rank)}
