"""What exits would have drafted, told from hidden states that a step makes anyway (as DEL does, arXiv 2504.05598)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from truedepth.decoding.drafts import Draft
from truedepth.plan import Stage


class Shadow:
    """Collects the hidden states of one step at the depths where drafts end that are mere beginnings of the target.

    Args:
        drafts: to be judged; none where nothing is asked for.
    """

    def __init__(self, drafts: Sequence[Draft]) -> None:
        self._drafts = drafts
        self._depths = {len(draft.shared) for draft in drafts if not draft.alone}
        self._states: dict[int, list[Tensor]] = defaultdict(list)

    def cut(self, stages: Sequence[Stage], first: int) -> Iterator[tuple[Sequence[Stage], int]]:
        """Stages in parts that end where states are wanted, each with the depth that it reaches.

        Args:
            stages: of the target, from its stage `first` on.
        """
        end = first + len(stages)
        at = first
        for depth in sorted(depth for depth in self._depths if first < depth < end):
            yield stages[at - first : depth - first], depth
            at = depth
        if at < end:
            yield stages[at - first :], end

    def keep(self, depth: int, hidden: Tensor) -> None:
        """Remember what came out at a depth, (B, T, D), if it is wanted."""
        if depth in self._depths:
            self._states[depth].append(hidden)

    def tell(self, tokens: Tensor, accepted: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """For each draft, how many tokens it would have drafted right, and of how many.

        Args:
            tokens: what the step came to, (B, T), int64: the accepted tokens of a sequence and the one after.
            accepted: of each sequence.
        """
        places = torch.arange(tokens.shape[1], device=tokens.device)
        real = places <= torch.tensor(accepted, device=tokens.device)[:, None]  # (B, T)
        return tuple(self._judge(draft, tokens, real) for draft in self._drafts)

    def _judge(self, draft: Draft, tokens: Tensor, real: Tensor) -> tuple[int, int]:
        states = self._states.get(len(draft.shared), []) if not draft.alone else []
        if not states:
            return 0, 0
        chosen = draft.head.logits(torch.cat(states, 1)).argmax(-1)  # (B, T)
        if draft.head.vocabulary is not None:
            chosen = draft.head.vocabulary[chosen]
        return int(((chosen == tokens) & real).sum()), int(real.sum())
