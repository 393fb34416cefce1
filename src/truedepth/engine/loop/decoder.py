"""The loop of decoding: read the prompts, then plain steps or rounds of drafting and verifying, until all are done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from truedepth.engine.drafts.drafts import AnyDraft
from truedepth.engine.drafts.policy import Round, SpeculationPolicy
from truedepth.engine.drafts.shadow import shadow_depths, tell_shadow
from truedepth.engine.loop.batch import MOST_DRAFTED, Batch
from truedepth.engine.loop.drafters import confidences_of, drafter_of
from truedepth.engine.runner.caches import KVCache
from truedepth.engine.runner.capture import STRIDE, CapturedRun, Record
from truedepth.engine.runner.model_runner import ForwardContext, ModelRunner
from truedepth.engine.runner.target_states import TargetStates
from truedepth.engine.sampling.batch_sampler import BatchSampler, drafted_by_row
from truedepth.engine.sampling.result import DecodingStep
from truedepth.engine.sampling.sequences import Clock, SequenceState
from truedepth.plan import DepthPlan
from truedepth.records.progress import Progress, silent

PROMPT_CHUNK = 512
"""Prompt tokens of a sequence that are read at once."""

Update = tuple[SequenceState, int]
"""A sequence, and how many tokens a step has added to it."""


class Observer(Protocol):
    """Is shown hidden states of the target, such as one that a training reads.

    Attributes:
        depths: numbers of the target's stages after which it wants to see them.
    """

    depths: frozenset[int]

    def see(self, sequences: Sequence[SequenceState], states: TargetStates, context: ForwardContext) -> None:
        """Look at the states of tokens of some sequences, which the target has run over."""
        ...


class Decoder:
    """One batch of sequences, written until each has finished.

    Args:
        runner: the model.
        target: the plan whose tokens, or distribution, the result has.
        drafts: what the policy chooses from.
        sequences: of any lengths.
        sampler: how tokens are chosen from logits.
        record: how steps are captured; None: they are not.
        observers: who is shown the target's states.
        progress: shown prompts that take several passes to read.
    """

    def __init__(
        self,
        runner: ModelRunner,
        target: DepthPlan,
        drafts: Sequence[AnyDraft],
        policy: SpeculationPolicy,
        sequences: Sequence[SequenceState],
        sampler: BatchSampler,
        record: Record | None = None,
        observers: Sequence[Observer] = (),
        progress: Progress = silent,
    ) -> None:
        self.runner, self.target, self.drafts, self.policy, self.sampler = runner, target, drafts, policy, sampler
        self.active = sorted(sequences, key=lambda sequence: len(sequence.tokens))
        self._progress = progress
        self.clock = Clock()
        longest = max(len(sequence.tokens) + sequence.room for sequence in sequences)
        rows, capacity = len(sequences), longest + MOST_DRAFTED + 1
        self._batch = Batch(
            runner=runner,
            target=target,
            sampler=sampler,
            policy=policy,
            active=self.active,
            cache=KVCache(rows, capacity),
            capacity=capacity,
            run=runner.run if record is None else CapturedRun(runner.run, record),
            stride=None if record is None else STRIDE,
        )
        self._drafters = [drafter_of(draft, self._batch, KVCache(rows, capacity)) for draft in drafts]
        self._observers: list[Observer] = [*self._drafters, *observers]
        self._depths = frozenset[int]().union(*(observer.depths for observer in self._observers))

    def steps(self) -> Iterator[list[Update]]:
        """Run step by step: after each, the sequences that were active in it and what it added to them.

        Raises:
            DecodingError: logits that are not numbers.
        """
        yield self._prefill()
        while updates := self._step():
            yield updates

    @torch.inference_mode()
    def _step(self) -> list[Update]:
        """The next step; no updates where all sequences have finished."""
        if not self._drop_finished():
            return []
        begun = self.policy.begin(len(self.active))
        if begun is not None:
            most = min(begun[1], MOST_DRAFTED, max(sequence.room for sequence in self.active) - 1)
            if most > 0:
                return self._speculate(begun[0], most)
        return self._plain()

    @torch.inference_mode()
    def _prefill(self) -> list[Update]:
        last: list[Tensor] = []
        groups = [list(group) for _, group in groupby(self.active, key=lambda sequence: len(sequence.tokens))]
        passes = [-(-len(group[0].tokens) // PROMPT_CHUNK) for group in groups]
        progress = self._progress if max(passes) > 1 else silent
        with progress("Reading the prompt", sum(passes)) as advance:
            for group in groups:
                last.append(self._read(group, sum(map(len, last)), advance))
        if self.target.prefill == "full":
            self._batch.cache.keep_only(self.target.layers_used)
        logits = self.runner.logits(torch.cat(last))  # (B, 1, V)
        chosen = self.sampler.choose(logits, self.active)  # (B, 1)
        self.clock.prefill = self.clock.elapsed()
        return self._extend(chosen, [0] * len(self.active), logits)

    def _read(self, sequences: Sequence[SequenceState], first_row: int, advance: Callable[[], None]) -> Tensor:
        """Run the plan, or every layer where it says so, over prompts of one length; returns (B, 1, D)."""
        ids = torch.tensor([sequence.tokens for sequence in sequences], device=self.runner.device)  # (B, T)
        full = DepthPlan.full(self.target.num_layers)
        stages = full.stages if self.target.prefill == "full" else self.target.stages
        hidden = torch.empty(0)
        for start in range(0, ids.shape[1], PROMPT_CHUNK):
            part = ids[:, start : start + PROMPT_CHUNK]
            context = self.runner.context([start] * len(part), part.shape[1], self._batch.capacity, first_row)
            embedded = self.runner.embed(part)  # (B, T, D)
            states = TargetStates(self._depths)
            hidden = self._batch.run_target(stages, embedded, context, self._batch.target_cache, states)
            self._show(sequences, states, context)
            for drafter in self._drafters:
                drafter.read(embedded, context)
            advance()
        return hidden[:, -1:]

    def _wanted_states(self) -> TargetStates:
        """To be kept in the next step."""
        return TargetStates(self._depths | (shadow_depths(self.drafts) if self.policy.wants_shadow else frozenset()))

    def _show(self, sequences: Sequence[SequenceState], states: TargetStates, context: ForwardContext) -> None:
        for observer in self._observers:
            observer.see(sequences, states, context)

    def _tell(self, states: TargetStates, tokens: Tensor, accepted: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """`Round.shadow` of a step that came to `tokens`."""
        return tell_shadow(self.drafts if self.policy.wants_shadow else (), states, tokens, accepted)

    def _plain(self) -> list[Update]:
        begun = time.perf_counter()
        states, context = self._wanted_states(), self._batch.context(0, 1)
        hidden = self.runner.embed(self._batch.last_tokens())  # (B, 1, D)
        hidden = self._batch.run_target(self.target.stages, hidden, context, self._batch.target_cache, states)
        self._show(self.active, states, context)
        logits = self.runner.logits(hidden)  # (B, 1, V)
        chosen = self.sampler.choose(logits, self.active)  # (B, 1)
        seconds = time.perf_counter() - begun
        self.clock.plain += seconds
        none = [0] * len(self.active)
        for sequence in self.active:
            sequence.steps.append(DecodingStep(0, 0))
        self.policy.note(Round(None, 0, tuple(none), (), 0.0, seconds, self._tell(states, chosen, none)))
        return self._extend(chosen, none, logits)

    def _speculate(self, index: int, most: int) -> list[Update]:
        drafter = self._drafters[index]
        drafter.catch_up()
        begun = time.perf_counter()
        states = self._wanted_states()
        hidden, proposals = drafter.draft(most, states)  # (B, d + 1, D)
        drafted = torch.cat([proposal.ids for proposal in proposals], 1)  # (B, d)
        verified_from = time.perf_counter()
        context = self._batch.context(0, hidden.shape[1])
        stages, first = drafter.verified_by
        hidden = self._batch.run_target(stages, hidden, context, self._batch.target_cache, states, first)
        self._show(self.active, states, context)
        logits = self.runner.logits(hidden)  # (B, d + 1, V)
        taken, following = self.sampler.accept(logits, proposals, self.active)
        counts: list[int] = taken.tolist()
        ended = time.perf_counter()
        self.clock.draft += verified_from - begun
        self.clock.verify += ended - verified_from
        drafter.note(counts)
        for sequence, count, own in zip(self.active, counts, drafted_by_row(proposals), strict=True):
            sequence.steps.append(DecodingStep(own, min(count, own)))
        tokens = torch.cat([drafted, drafted[:, :1]], 1).scatter_(1, taken[:, None], following[:, None])
        self.policy.note(
            Round(
                index,
                drafted.shape[1],
                tuple(counts),
                confidences_of(proposals),
                verified_from - begun,
                ended - verified_from,
                self._tell(states, tokens, counts),
            )
        )
        return self._extend(tokens, counts, logits)

    def _extend(self, tokens: Tensor, accepted: Sequence[int], logits: Tensor) -> list[Update]:
        """Give each sequence its accepted tokens and the target's after them.

        Args:
            tokens: (B, n), int64; those beyond `accepted[b]` + 1 do not count.
            logits: the target's, (B, n, V).
        """
        updates = []
        rows: list[list[int]] = tokens.tolist()
        for row, (sequence, count) in enumerate(zip(self.active, accepted, strict=True)):
            new = rows[row][: count + 1]
            logprobs = self._logprobs(logits[row], new) if sequence.request.logprobs else []
            updates.append((sequence, sequence.extend(new, count, logprobs, self.clock)))
        return updates

    def _logprobs(self, logits: Tensor, tokens: Sequence[int]) -> list[float]:
        """(T, V) and up to T tokens."""
        logged = logits[: len(tokens)].log_softmax(-1, dtype=torch.float32)
        found: list[float] = logged.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
        return found

    def _drop_finished(self) -> bool:
        """Let finished sequences go, their rows to the last ones; whether any is left."""
        row = 0
        while row < len(self.active):
            if self.active[row].finish_reason is None:
                row += 1
                continue
            last = self.active.pop()
            if row < len(self.active):
                self.active[row] = last
                self._batch.cache.move_row(len(self.active), row, last.start)
                for drafter in self._drafters:
                    drafter.move_row(len(self.active), row, last.start)
        return bool(self.active)
