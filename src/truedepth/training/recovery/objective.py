"""What a model under a plan is trained on to recover: the text, or the unmodified model's view of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from truedepth.families import Family
from truedepth.plan import DepthPlan
from truedepth.records.recipe import Settings
from truedepth.training.data.rows import IGNORED
from truedepth.training.hooks.head_loss import SharedHead, summed_losses
from truedepth.training.recovery.changes import changed_layers
from truedepth.training.recovery.teacher import Teacher


class Objective(Settings):
    """What is trained for."""

    kind: Literal["language-model", "distillation"] = Field(
        default="language-model",
        description="'language-model': the next token of the text; "
        "'distillation': what the unmodified model says of the next token",
    )
    temperature: float = Field(default=1.0, gt=0, description="of both models' distributions in a distillation")
    hidden_states: float = Field(
        default=0.0,
        ge=0,
        description="how much the distance to the unmodified model's hidden states counts, beside the loss above",
    )

    @property
    def needs_teacher(self) -> bool:
        """Whether the unmodified model is to run too."""
        return self.kind == "distillation" or self.hidden_states > 0


@dataclass(frozen=True, slots=True)
class RowStates:
    """Hidden states of consecutive positions of each row.

    Attributes:
        final: what goes into the final norm, (B, T, D).
        outputs: what comes out of stages, (B, t, D) with t <= T: of the last t of these positions. By the layer that
            `compared_layers` names.
    """

    final: Tensor
    outputs: Mapping[int, Tensor]


@dataclass(frozen=True, slots=True)
class RecoveryFigures:
    """Sums over the tokens of a forward that the loss is over; scalars without gradients.

    Attributes:
        cross_entropy: with the text, in nats.
        divergence: KL(unmodified || under the plan), in nats, scaled by the temperature squared; None without a
            distillation.
        distance: see `Recovery.loss`; None where hidden states do not count.
        tokens: how many there are.
    """

    cross_entropy: Tensor
    divergence: Tensor | None
    distance: Tensor | None
    tokens: int


def compared_layers(plan: DepthPlan) -> dict[int, int]:
    """Which outputs of a plan are compared with which of the unmodified model.

    The outputs of all stages from the first changed one on. After a stage, the plan has done what the unmodified model
    has done after the last layer that occurred so far.

    Returns:
        The unmodified model's layer, by the first layer of the plan's stage.
    """
    reached = list(accumulate((max(stage.layers) for stage in plan.stages), max))
    changed = set(changed_layers(plan))
    first = next((at for at, stage in enumerate(plan.stages) if changed.intersection(stage.layers)), len(plan.stages))
    pairs = list(zip(plan.stages, reached, strict=True))[first:]
    return {stage.layers[0]: layer for stage, layer in pairs}


class Recovery:
    """The loss of a forward under a plan.

    Args:
        core: the causal language model that is trained.
        teacher: the unmodified model, where the loss compares with it.

    Attributes:
        found: what the last loss came to.
    """

    def __init__(self, core: Any, family: Family, settings: Objective, teacher: Teacher | None) -> None:
        self._head = SharedHead(core, family)
        self._settings, self._teacher = settings, teacher
        self.found: RecoveryFigures | None = None

    def loss(
        self, student: RowStates, taught: RowStates | None, labels: Tensor, num_items: Tensor | int | None
    ) -> Tensor:
        """Cross-entropy or divergence, and the distance of hidden states; a scalar.

        The distance of two states is |s - t|^2 / |t|^2, the mean over the stages that are compared.

        Args:
            student: the states under the plan.
            taught: the unmodified model's, of the same positions.
            labels: (B, T) int64, not shifted: the token at position t is predicted from position t - 1.
            num_items: what sums over tokens are divided by; None: the number of tokens in the loss.
        """
        targets = labels[:, 1:]
        loss_mask = targets != IGNORED  # (B, T - 1)
        targets = targets[loss_mask]  # (N,)
        rows = student.final[:, :-1][loss_mask]  # (N, D)
        cross_entropies = rows.new_zeros((), dtype=torch.float32)

        def criterion(logits: Tensor, part: slice) -> Tensor:
            nonlocal cross_entropies
            loss = cross_entropy(logits, targets[part], reduction="sum")
            cross_entropies = cross_entropies + loss.detach()
            if self._settings.kind == "language-model":
                return loss
            assert self._teacher is not None
            assert taught is not None
            return self._divergence(logits, self._teacher.logits(taught.final[:, :-1][loss_mask][part]))

        found = summed_losses(self._head, [rows], [1.0], criterion)
        total, distance = found.total, None
        if self._settings.hidden_states:
            assert taught is not None
            distance = _distance(student.outputs, taught.outputs, loss_mask)
            total = total + self._settings.hidden_states * distance
        self.found = RecoveryFigures(
            cross_entropy=cross_entropies,
            divergence=found.each[0] if self._settings.kind == "distillation" else None,
            distance=None if distance is None else distance.detach(),
            tokens=len(targets),
        )
        return total / (max(len(targets), 1) if num_items is None else num_items)

    def _divergence(self, logits: Tensor, taught: Tensor) -> Tensor:
        temperature = self._settings.temperature
        own = (logits / temperature).log_softmax(-1)  # (n, V)
        wanted = (taught.to(logits.dtype) / temperature).log_softmax(-1)
        return kl_div(own, wanted, reduction="sum", log_target=True) * temperature**2


def _distance(outputs: Mapping[int, Tensor], taught: Mapping[int, Tensor], loss_mask: Tensor) -> Tensor:
    """The mean over stages of the distances summed over the tokens in the loss; a scalar."""
    total = torch.zeros((), device=loss_mask.device)
    for key, output in outputs.items():
        counted = loss_mask[:, loss_mask.shape[1] + 1 - output.shape[1] :]  # the last position predicts nothing
        own = output[:, :-1][counted].float()  # (n, D)
        wanted = taught[key][:, :-1][counted].float()
        total = total + ((own - wanted).square().sum(-1) / wanted.square().sum(-1)).sum() / len(outputs)
    return total
