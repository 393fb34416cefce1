"""How drafts propose tokens in the loop of a batch: by the stages of a plan, or by a head that reads states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from truedepth.engine.drafts.drafts import AnyDraft, Draft, EagleDraft
from truedepth.engine.loop.batch import MOST_DRAFTED, Batch
from truedepth.engine.runner.caches import KVCache, ReadOnlyCache, StateTable
from truedepth.engine.runner.model_runner import CacheOf, ForwardContext
from truedepth.engine.runner.target_states import TargetStates
from truedepth.engine.sampling.batch_sampler import Proposal
from truedepth.engine.sampling.sequences import SequenceState
from truedepth.plan import Stage


class Drafter(ABC):
    """One draft at work on one batch, with what it keeps of the batch's tokens.

    Args:
        cache: for entries of the draft's own.

    Attributes:
        depths: of the target, whose states `see` must be shown.
    """

    def __init__(self, batch: Batch, cache: KVCache) -> None:
        self._batch, self._cache = batch, cache
        self._filled: dict[int, int] = {}  # by sequence: where the draft's own entries end
        self.depths: frozenset[int] = frozenset()

    @property
    @abstractmethod
    def verified_by(self) -> tuple[Sequence[Stage], int]:
        """The stages of the target that verification runs over what `draft` returns, and how many it has behind it."""

    @abstractmethod
    def read(self, embedded: Tensor, context: ForwardContext) -> None:
        """Read a part of prompts, (B, T, D), that the target has read."""

    def see(self, sequences: Sequence[SequenceState], states: TargetStates, context: ForwardContext) -> None:  # noqa: B027
        """Look at the target's states of tokens that it has run over."""

    @abstractmethod
    def catch_up(self) -> None:
        """Take in what came without this draft: by plain steps or another draft."""

    @abstractmethod
    def draft(self, most: int, states: TargetStates) -> tuple[Tensor, list[Proposal]]:
        """Propose 1 to `most` tokens for each sequence.

        Args:
            states: of the target, to be kept where the target's own stages run.

        Returns:
            What verification starts from, for each sequence's last token and those proposed, (B, d + 1, D), and the
            tokens proposed.
        """

    def note(self, accepted: Sequence[int]) -> None:  # noqa: B027
        """Learn how many of the tokens proposed last each sequence takes; they are not among its tokens yet."""

    def move_row(self, source: int, target: int, length: int) -> None:
        """Give the sequence of one row another; it has entries of `length` tokens."""
        self._cache.move_row(source, target, length)

    def _begin(self, row: int) -> int:
        """Where a sequence's entries end; prompts were read."""
        sequence = self._batch.active[row]
        return self._filled.get(sequence.index, len(sequence.request.prompt_ids))

    def _row_context(self, row: int, begin: int, end: int) -> tuple[Tensor, ForwardContext]:
        """Embedded tokens of one sequence from position `begin` to before `end`, (1, T, D), and where they stand."""
        runner = self._batch.runner
        ids = torch.tensor([self._batch.active[row].tokens[begin:end]], device=runner.device)  # (1, T)
        return runner.embed(ids), runner.context([begin], ids.shape[1], self._batch.capacity, row)

    def _goes_on(self, proposals: Sequence[Proposal], most: int) -> bool:
        """Not where each sequence has drafted its end: what followed would be thrown away."""
        if len(proposals) >= most or all(proposals[-1].ended):
            return False
        return self._batch.policy.goes_on(len(proposals), confidences_of(proposals))


def drafter_of(draft: AnyDraft, batch: Batch, cache: KVCache) -> Drafter:
    """What makes a draft work on a batch."""
    return PlanDrafter(draft, batch, cache) if isinstance(draft, Draft) else EagleDrafter(draft, batch, cache)


def confidences_of(proposals: Sequence[Proposal]) -> tuple[tuple[float, ...], ...]:
    """By sequence and position; empty where none were asked for."""
    return tuple(zip(*(proposal.confidences for proposal in proposals), strict=True))


class PlanDrafter(Drafter):
    """Drafts by the stages of a plan; see `Draft`."""

    def __init__(self, draft: Draft, batch: Batch, cache: KVCache) -> None:
        super().__init__(batch, cache)
        self._draft = draft

    @property
    def verified_by(self) -> tuple[Sequence[Stage], int]:
        return self._draft.rest, len(self._draft.shared)

    def read(self, embedded: Tensor, context: ForwardContext) -> None:
        if self._draft.kept:
            self._fill(embedded, context)

    def catch_up(self) -> None:
        if not self._draft.kept:
            return
        for row, sequence in enumerate(self._batch.active):
            begin = self._begin(row)
            if begin < sequence.start:
                self._fill(*self._row_context(row, begin, sequence.start))

    def draft(self, most: int, states: TargetStates) -> tuple[Tensor, list[Proposal]]:
        """Stage by stage; the shared prefix runs over the last token proposed, too."""
        batch, draft = self._batch, self._draft
        cache_of = self._cache_of(batch.cache)
        found: list[Tensor] = []
        proposals: list[Proposal] = []
        ids = batch.last_tokens()
        while True:
            context = batch.context(len(proposals), 1)
            hidden = batch.run_target(draft.shared, batch.runner.embed(ids), context, cache_of, states)  # (B, 1, D)
            found.append(hidden)
            last = bool(proposals) and not self._goes_on(proposals, most)
            if not last or draft.kept:  # what the draft keeps must be whole, even if all its tokens are taken
                hidden = batch.run(draft.alone, draft.form, hidden, context, cache_of)
            if last:
                return torch.cat(found, 1), proposals
            logits = draft.head.logits(hidden)  # (B, 1, V')
            proposals.append(_propose(batch, logits, draft.head.vocabulary, proposals))
            ids = proposals[-1].ids

    def note(self, accepted: Sequence[int]) -> None:
        for sequence, count in zip(self._batch.active, accepted, strict=True):
            self._filled[sequence.index] = sequence.start + count + 1

    def _fill(self, embedded: Tensor, context: ForwardContext) -> None:
        """Give the draft its own entries of verified tokens, (B, T, D).

        It looks at the target's entries, but must not change them: in a prompt they may be those of another plan.
        """
        runner, draft = self._batch.runner, self._draft
        cache_of = self._cache_of(self._batch.cache.read_only())
        prefix = runner.run(draft.shared, draft.form, embedded, context, cache_of)
        runner.run(draft.alone, draft.form, prefix, context, cache_of)

    def _cache_of(self, targets: KVCache | ReadOnlyCache) -> CacheOf:
        """Where the layers of the draft keep their entries: their own, or the target's."""
        kept, own = self._draft.kept, self._cache
        return lambda layer: own if layer in kept else targets


class EagleDrafter(Drafter):
    """Drafts by a head from the target's states; see `EagleHead`.

    Those are kept as they come: state t - 1 is stored in slot t, that of the token chosen after it. Tokens verified
    since the last round enter the head in one pass with the first drafting step: what entries they had came from the
    head's own states.
    """

    def __init__(self, draft: EagleDraft, batch: Batch, cache: KVCache) -> None:
        super().__init__(batch, cache)
        self._draft, self._head = draft, draft.head
        self._table = StateTable(cache.rows, cache.capacity)
        self.depths = frozenset(draft.head.depths)

    @property
    def verified_by(self) -> tuple[Sequence[Stage], int]:
        return self._batch.target.stages, 0

    def read(self, embedded: Tensor, context: ForwardContext) -> None:
        self._enter(embedded, context)

    def see(self, sequences: Sequence[SequenceState], states: TargetStates, context: ForwardContext) -> None:
        self._table.write(states.at(*self._head.depths), context.slots + 1)

    def catch_up(self) -> None:
        """Where that is more than a round may bring; less comes with the first drafting step."""
        for row, sequence in enumerate(self._batch.active):
            begin = self._begin(row)
            if sequence.start - begin > MOST_DRAFTED:
                self._enter(*self._row_context(row, begin, sequence.start))
                self._filled[sequence.index] = sequence.start

    def draft(self, most: int, states: TargetStates) -> tuple[Tensor, list[Proposal]]:
        batch = self._batch
        embedded, hidden = self._first()  # (B, 1, D) each
        found: list[Tensor] = [embedded]
        proposals: list[Proposal] = []
        while True:
            logits = self._head.logits(hidden)  # (B, 1, V')
            proposals.append(_propose(batch, logits, self._head.vocabulary, proposals))
            embedded = batch.runner.embed(proposals[-1].ids)  # (B, 1, D)
            found.append(embedded)
            if not self._goes_on(proposals, most):
                return torch.cat(found, 1), proposals
            hidden = self._run(self._head.layer_inputs(hidden, embedded), batch.context(len(proposals), 1))

    def move_row(self, source: int, target: int, length: int) -> None:
        super().move_row(source, target, length)
        self._table.move_row(source, target, length + 1)

    def _first(self) -> tuple[Tensor, Tensor]:
        """Take in each sequence's tokens up to its last; the last ones embedded, and the head's states of them."""
        batch = self._batch
        begins = [self._begin(row) for row in range(len(batch.active))]
        counts = [sequence.start + 1 - begin for sequence, begin in zip(batch.active, begins, strict=True)]
        longest = max(counts)
        # Rows of fewer tokens go on with what will be overwritten.
        ids = [
            sequence.tokens[begin:] + [0] * (longest - count)
            for sequence, begin, count in zip(batch.active, begins, counts, strict=True)
        ]
        embedded = batch.runner.embed(torch.tensor(ids, device=batch.runner.device))  # (B, T, D)
        hidden = self._enter(embedded, batch.context_from(begins, longest))
        for sequence in batch.active:
            self._filled[sequence.index] = sequence.start + 1
        rows = torch.arange(len(ids), device=hidden.device)
        last = torch.tensor(counts, device=hidden.device) - 1
        return embedded[rows, last][:, None], hidden[rows, last][:, None]

    def _enter(self, embedded: Tensor, context: ForwardContext) -> Tensor:
        """Run the head over tokens before which the target has been: (B, T, D) to (B, T, D)."""
        states = self._table.read(context.slots).view(*embedded.shape[:2], -1)  # (B, T, D * k)
        return self._run(self._head.layer_inputs(self._head.combine_hidden_states(states), embedded), context)

    def _run(self, hidden: Tensor, context: ForwardContext) -> Tensor:
        return self._batch.run(self._draft.stages, "lp", hidden, context, lambda _: self._cache)


def _propose(batch: Batch, logits: Tensor, vocabulary: Tensor | None, before: Sequence[Proposal]) -> Proposal:
    wanted = batch.policy.wants_confidence
    return batch.sampler.propose(logits, vocabulary, batch.active, before, with_confidence=wanted)
