"""The loop of decoding: read the prompts, then plain steps or rounds of drafting and verifying, until all are done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from collections.abc import Sequence as Many
from itertools import groupby

import torch
from torch import Tensor

from truedepth.decoding.caches import KVCache, LentCache
from truedepth.decoding.capture import STRIDE, CapturedRun, Record
from truedepth.decoding.choice import Choice, Proposal
from truedepth.decoding.drafts import Draft
from truedepth.decoding.pacing import Pacer, Round
from truedepth.decoding.result import Step
from truedepth.decoding.sequences import Clock, Sequence
from truedepth.decoding.shadow import Shadow
from truedepth.decoding.trunk import CacheOf, Place, RunStages, Trunk
from truedepth.plan import DepthPlan, Stage

MOST_DRAFTED = 32
"""No round drafts more tokens than this."""

PROMPT_CHUNK = 512
"""Prompt tokens of a sequence that are read at once."""

Update = tuple[Sequence, int]
"""A sequence, and how many tokens a step has added to it."""


class Decoder:
    """One batch of sequences, written until each has finished.

    Args:
        trunk: the model.
        target: the plan whose tokens, or distribution, the result has.
        drafts: what the pacer chooses from.
        sequences: of any lengths.
        choice: how tokens are chosen from logits.
        record: how steps are captured; None: they are not.
    """

    def __init__(
        self,
        trunk: Trunk,
        target: DepthPlan,
        drafts: Many[Draft],
        pacer: Pacer,
        sequences: Many[Sequence],
        choice: Choice,
        record: Record | None = None,
    ) -> None:
        self.trunk, self.target, self.drafts, self.pacer, self.choice = trunk, target, drafts, pacer, choice
        self.active = sorted(sequences, key=lambda sequence: len(sequence.tokens))
        self.clock = Clock()
        longest = max(len(sequence.tokens) + sequence.room for sequence in sequences)
        rows, self.capacity = len(sequences), longest + MOST_DRAFTED + 1
        self._run: RunStages = trunk.run if record is None else CapturedRun(trunk.run, record)
        self._stride = None if record is None else STRIDE
        self._cache = KVCache(rows, self.capacity)
        self._draft_caches = [KVCache(rows, self.capacity) for _ in drafts]
        self._filled: list[dict[int, int]] = [{} for _ in drafts]  # by sequence: where the draft's own entries end

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
        begun = self.pacer.begin(len(self.active))
        if begun is not None:
            most = min(begun[1], MOST_DRAFTED, max(sequence.room for sequence in self.active) - 1)
            if most > 0:
                return self._speculate(begun[0], most)
        return self._plain()

    @torch.inference_mode()
    def _prefill(self) -> list[Update]:
        last: list[Tensor] = []
        for _, group in groupby(self.active, key=lambda sequence: len(sequence.tokens)):
            last.append(self._read([sequence.tokens for sequence in group], sum(map(len, last))))
        if self.target.prefill == "full":
            self._cache.keep_only(self.target.layers_used)
        logits = self.trunk.logits(torch.cat(last))  # (B, 1, V)
        chosen = self.choice.choose(logits, self.active)  # (B, 1)
        self.clock.prefill = self.clock.elapsed()
        return self._extend(chosen, [0] * len(self.active), logits)

    def _read(self, prompts: Many[Many[int]], first_row: int) -> Tensor:
        """Run the plan, or every layer where it says so, over prompts of one length; returns (B, 1, D)."""
        ids = torch.tensor(prompts, device=self.trunk.device)  # (B, T)
        full = DepthPlan.full(self.target.num_layers)
        stages = full.stages if self.target.prefill == "full" else self.target.stages
        hidden = torch.empty(0)
        for start in range(0, ids.shape[1], PROMPT_CHUNK):
            part = ids[:, start : start + PROMPT_CHUNK]
            place = self.trunk.place([start] * len(part), part.shape[1], self.capacity, first_row)
            embedded = self.trunk.embed(part)  # (B, T, D)
            hidden = self.trunk.run(stages, self.target.form, embedded, place, self._target_cache)
            for index, draft in enumerate(self.drafts):
                if draft.kept:
                    self._fill(index, embedded, place)
        return hidden[:, -1:]

    def _fill(self, index: int, embedded: Tensor, place: Place) -> None:
        """Give a draft its own entries of verified tokens, (B, T, D).

        It looks at the target's entries, but must not change them: in a prompt they may be those of another plan.
        """
        draft, cache_of = self.drafts[index], self._cache_of(index, self._cache.lend())
        prefix = self.trunk.run(draft.shared, draft.form, embedded, place, cache_of)
        self.trunk.run(draft.alone, draft.form, prefix, place, cache_of)

    def _catch_up(self, index: int) -> None:
        """Give a draft its own entries of the tokens that came without it: by plain steps or another draft."""
        filled = self._filled[index]
        for row, sequence in enumerate(self.active):
            begin = filled.get(sequence.index, len(sequence.request.prompt_ids))
            if begin < sequence.start:
                ids = torch.tensor([sequence.tokens[begin:-1]], device=self.trunk.device)  # (1, T)
                place = self.trunk.place([begin], ids.shape[1], self.capacity, row)
                self._fill(index, self.trunk.embed(ids), place)

    def _target_cache(self, layer: int) -> KVCache:
        return self._cache

    def _cache_of(self, draft: int, targets: KVCache | LentCache) -> CacheOf:
        """Where the layers of a draft keep their entries: their own, or the target's."""
        kept, own = self.drafts[draft].kept, self._draft_caches[draft]
        return lambda layer: own if layer in kept else targets

    def _place(self, ahead: int, tokens: int) -> Place:
        """Where `tokens` tokens of each sequence stand, the first of them `ahead` after its last."""
        starts = [sequence.start + ahead for sequence in self.active]
        return self.trunk.place(starts, tokens, self.capacity, stride=self._stride)

    def _plain(self) -> list[Update]:
        begun = time.perf_counter()
        shadow = Shadow(self.drafts if self.pacer.wants_shadow else ())
        hidden = self.trunk.embed(self._last_tokens())  # (B, 1, D)
        hidden = self._run_target(self.target.stages, hidden, self._place(0, 1), self._target_cache, shadow)
        logits = self.trunk.logits(hidden)  # (B, 1, V)
        chosen = self.choice.choose(logits, self.active)  # (B, 1)
        seconds = time.perf_counter() - begun
        self.clock.plain += seconds
        none = [0] * len(self.active)
        for sequence in self.active:
            sequence.steps.append(Step(0, 0))
        self.pacer.note(Round(None, 0, tuple(none), (), 0.0, seconds, shadow.tell(chosen, none)))
        return self._extend(chosen, none, logits)

    def _speculate(self, index: int, most: int) -> list[Update]:
        draft = self.drafts[index]
        if draft.kept:
            self._catch_up(index)
        begun = time.perf_counter()
        shadow = Shadow(self.drafts if self.pacer.wants_shadow else ())
        hidden, proposals = self._draft(draft, self._cache_of(index, self._cache), most, shadow)  # (B, d + 1, D)
        drafted = torch.cat([proposal.ids for proposal in proposals], 1)  # (B, d)
        verified_from = time.perf_counter()
        place = self._place(0, hidden.shape[1])
        hidden = self._run_target(draft.rest, hidden, place, self._target_cache, shadow, len(draft.shared))
        logits = self.trunk.logits(hidden)  # (B, d + 1, V)
        taken, following = self.choice.accept(logits, proposals, self.active)
        counts: list[int] = taken.tolist()
        ended = time.perf_counter()
        self.clock.draft += verified_from - begun
        self.clock.verify += ended - verified_from
        for sequence, count in zip(self.active, counts, strict=True):
            sequence.steps.append(Step(drafted.shape[1], count))
            self._filled[index][sequence.index] = sequence.start + count + 1
        tokens = torch.cat([drafted, drafted[:, :1]], 1).scatter_(1, taken[:, None], following[:, None])
        self.pacer.note(
            Round(
                index,
                drafted.shape[1],
                tuple(counts),
                _by_sequence(proposals),
                verified_from - begun,
                ended - verified_from,
                shadow.tell(tokens, counts),
            )
        )
        return self._extend(tokens, counts, logits)

    def _draft(self, draft: Draft, cache_of: CacheOf, most: int, shadow: Shadow) -> tuple[Tensor, list[Proposal]]:
        """Propose up to `most` tokens a sequence, and run the shared prefix over the last of them too.

        Returns:
            What came out of the shared prefix for each token that went in, (B, d + 1, D), and the tokens proposed.
        """
        states: list[Tensor] = []
        proposals: list[Proposal] = []
        ids = self._last_tokens()
        while True:
            place = self._place(len(proposals), 1)
            hidden = self._run_target(draft.shared, self.trunk.embed(ids), place, cache_of, shadow)  # (B, 1, D)
            states.append(hidden)
            confidences = _by_sequence(proposals)
            last = len(proposals) == most or (proposals and not self.pacer.goes_on(len(proposals), confidences))
            if not last or draft.kept:  # what the draft keeps must be whole, even if all its tokens are taken
                hidden = self._run(draft.alone, draft.form, hidden, place, cache_of)
            if last:
                return torch.cat(states, 1), proposals
            logits = draft.head.logits(hidden)  # (B, 1, V')
            wanted = self.pacer.wants_confidence
            proposal = self.choice.propose(
                logits, draft.head.vocabulary, self.active, proposals, with_confidence=wanted
            )
            proposals.append(proposal)
            ids = proposal.ids

    def _run_target(
        self, stages: Many[Stage], hidden: Tensor, place: Place, cache_of: CacheOf, shadow: Shadow, first: int = 0
    ) -> Tensor:
        """Run stages of the target from its stage `first` on, showing states to the shadow: (B, T, D) to (B, T, D)."""
        for part, depth in shadow.cut(stages, first):
            hidden = self._run(part, self.target.form, hidden, place, cache_of)
            shadow.keep(depth, hidden)
        return hidden

    def _last_tokens(self) -> Tensor:
        """(B, 1)"""
        return torch.tensor([sequence.tokens[-1:] for sequence in self.active], device=self.trunk.device)

    def _extend(self, tokens: Tensor, accepted: Many[int], logits: Tensor) -> list[Update]:
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

    def _logprobs(self, logits: Tensor, tokens: Many[int]) -> list[float]:
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
                for cache in (self._cache, *self._draft_caches):
                    cache.move_row(len(self.active), row, last.start)
        return bool(self.active)


def _by_sequence(proposals: Many[Proposal]) -> tuple[tuple[float, ...], ...]:
    """Confidences by sequence and place; empty where none were asked for."""
    return tuple(zip(*(proposal.confidences for proposal in proposals), strict=True))
