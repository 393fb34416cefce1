"""What exits would have drafted, told from hidden states that a step makes anyway (as DEL does, arXiv 2504.05598)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from truedepth.engine.drafts.drafts import AnyDraft, Draft
from truedepth.engine.runner.target_states import TargetStates


def shadow_depths(drafts: Sequence[AnyDraft]) -> frozenset[int]:
    """Where the drafts end that are mere beginnings of the target."""
    return frozenset(len(draft.shared) for draft in drafts if isinstance(draft, Draft) and not draft.alone)


def tell_shadow(
    drafts: Sequence[AnyDraft], states: TargetStates, tokens: Tensor, accepted: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """For each draft, how many tokens it would have drafted right, and of how many; (0, 0) where nothing tells.

    Args:
        states: of the step, at `shadow_depths`.
        tokens: what the step came to, (B, T), int64: the accepted tokens of a sequence and the one after.
        accepted: of each sequence.
    """
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    real = positions <= torch.tensor(accepted, device=tokens.device)[:, None]  # (B, T)
    return tuple(_judge(draft, states, tokens, real) for draft in drafts)


def _judge(draft: AnyDraft, states: TargetStates, tokens: Tensor, real: Tensor) -> tuple[int, int]:
    if not isinstance(draft, Draft) or draft.alone or len(draft.shared) not in states:
        return 0, 0
    chosen = draft.head.logits(states.at(len(draft.shared))).argmax(-1)  # (B, T)
    if draft.head.vocabulary is not None:
        chosen = draft.head.vocabulary[chosen]
    return int(((chosen == tokens) & real).sum()), int(real.sum())
