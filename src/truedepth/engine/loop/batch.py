"""The sequences of a batch together with what every part of the loop needs to run the model over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from truedepth.engine.drafts.policy import SpeculationPolicy
from truedepth.engine.runner.caches import KVCache
from truedepth.engine.runner.model_runner import CacheOf, ForwardContext, ModelRunner, RunStages
from truedepth.engine.runner.target_states import TargetStates
from truedepth.engine.sampling.batch_sampler import BatchSampler
from truedepth.engine.sampling.sequences import SequenceState
from truedepth.plan import DepthPlan, Stage

MOST_DRAFTED = 32
"""No round drafts more tokens than this."""


@dataclass
class Batch:
    """One batch while it is written.

    Attributes:
        runner: the model.
        target: the plan whose tokens, or distribution, the result has.
        active: the sequences that have not finished, by row of the caches.
        cache: the target's entries.
        capacity: tokens a row of any cache has room for.
        run: `ModelRunner.run`, or what stands for it.
        stride: see `ModelRunner.context`.
    """

    runner: ModelRunner
    target: DepthPlan
    sampler: BatchSampler
    policy: SpeculationPolicy
    active: list[SequenceState]
    cache: KVCache
    capacity: int
    run: RunStages
    stride: int | None

    def context(self, ahead: int, tokens: int) -> ForwardContext:
        """Where `tokens` tokens of each sequence stand, the first of them `ahead` after its last."""
        return self.context_from([sequence.start + ahead for sequence in self.active], tokens)

    def context_from(self, starts: Sequence[int], tokens: int) -> ForwardContext:
        """Where `tokens` tokens of each sequence stand, the first of them at its own start."""
        return self.runner.context(starts, tokens, self.capacity, stride=self.stride)

    def last_tokens(self) -> Tensor:
        """(B, 1)"""
        return torch.tensor([sequence.tokens[-1:] for sequence in self.active], device=self.runner.device)

    def target_cache(self, layer: int) -> KVCache:
        """Where the target's layers keep their entries."""
        return self.cache

    def run_target(
        self,
        stages: Sequence[Stage],
        hidden: Tensor,
        context: ForwardContext,
        cache_of: CacheOf,
        states: TargetStates,
        first: int = 0,
    ) -> Tensor:
        """Run stages of the target from its stage `first` on, keeping `states`: (B, T, D) to (B, T, D)."""
        for part, depth in states.cut(stages, first):
            hidden = self.run(part, self.target.form, hidden, context, cache_of)
            states.keep(depth, hidden)
        return hidden
