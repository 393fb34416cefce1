"""The trainer of a head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from truedepth.training.data.rows import IGNORED
from truedepth.training.heads.loss import HeadDistillation
from truedepth.training.trainer.depth_trainer import DepthTrainer
from truedepth.training.trainer.figures import position_name


class ExitHeadTrainer(DepthTrainer):
    """Distils a model into a head; see `HeadDistillation`.

    Args:
        decay: what each position counts of the one before.
    """

    def __init__(self, distillation: HeadDistillation, *others: Any, decay: float, **options: Any) -> None:
        super().__init__(distillation, *others, **options)
        self._decay = decay

    def loss_of(self, model: Any, inputs: dict[str, Any], num_items: Tensor | int | None) -> tuple[Tensor, Any]:
        """The sum of the positions' mean losses, each counting `decay` times what the one before counts."""
        tokens = (inputs["labels"] != IGNORED).sum().clamp(min=1)
        total = torch.zeros((), device=inputs["labels"].device)
        for index, (loss, right) in enumerate(model(draw=self._draw(), **inputs)):
            mean = self.per_token(loss, num_items, tokens)
            total = total + self._decay**index * mean
            self.extra_losses[position_name("loss", index + 1)] = mean.detach()
            self.extra_losses[position_name("agreement", index + 1)] = self.per_token(right, num_items, tokens)
        return total, {}

    def _draw(self) -> int:
        """The seed of one micro-batch's chance, on every rank another."""
        draw = self.args.seed
        for number in (self.state.global_step, self.micro_batch, self.args.process_index):
            draw = (draw * 1_000_003 + number) % 2**62
        return draw
