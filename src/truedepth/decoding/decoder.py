"""The loop of decoding: read the prompts, then plain steps or rounds of drafting and verifying, until all are done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from truedepth.decoding.caches import KVCache
from truedepth.decoding.choice import Choice, Proposal
from truedepth.decoding.drafts import Draft
from truedepth.decoding.pacing import Pacer, Round
from truedepth.decoding.result import Step
from truedepth.decoding.sequences import Clock, Sequence
from truedepth.decoding.trunk import CacheOf, Trunk
from truedepth.plan import DepthPlan

MOST_DRAFTED = 32
"""No round drafts more tokens than this."""

PROMPT_CHUNK = 512
"""Prompt tokens of a sequence that are read at once."""

Update = tuple[Sequence, int]
"""A sequence, and how many tokens a step has added to it."""


@dataclass
class _Drafted:
    """What drafting has made so far.

    Attributes:
        hidden: what came out of the shared prefix for each token that went in, (B, 1, D) each.
        proposals: the tokens proposed.
    """

    hidden: list[Tensor] = field(default_factory=list)
    proposals: list[Proposal] = field(default_factory=list)


class Decoder:
    """One batch of sequences, written until each has finished.

    Args:
        trunk: the model.
        target: the plan whose tokens, or distribution, the result has.
        drafts: what the pacer chooses from.
        sequences: of any lengths.
        choice: how tokens are chosen from logits.
    """

    def __init__(
        self,
        trunk: Trunk,
        target: DepthPlan,
        drafts: Many[Draft],
        pacer: Pacer,
        sequences: Many[Sequence],
        choice: Choice,
    ) -> None:
        self.trunk, self.target, self.drafts, self.pacer, self.choice = trunk, target, drafts, pacer, choice
        self.active = sorted(sequences, key=lambda sequence: len(sequence.tokens))
        self.clock = Clock()
        longest = max(len(sequence.tokens) + sequence.room for sequence in sequences)
        rows, self.capacity = len(sequences), longest + MOST_DRAFTED + 1
        self._cache = KVCache(rows, self.capacity)
        self._draft_caches = [KVCache(rows, self.capacity) for _ in drafts]

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
        own = [(draft, self._cache_of(index)) for index, draft in enumerate(self.drafts) if draft.kept]
        hidden = torch.empty(0)
        for start in range(0, ids.shape[1], PROMPT_CHUNK):
            part = ids[:, start : start + PROMPT_CHUNK]
            place = self.trunk.place([start] * len(part), part.shape[1], self.capacity, first_row)
            embedded = self.trunk.embed(part)  # (B, T, D)
            hidden = self.trunk.run(stages, self.target.form, embedded, place, lambda _: self._cache)
            for draft, cache_of in own:
                prefix = self.trunk.run(draft.shared, draft.form, embedded, place, cache_of)
                self.trunk.run(draft.alone, draft.form, prefix, place, cache_of)
        return hidden[:, -1:]

    def _cache_of(self, draft: int) -> CacheOf:
        """Where the layers of a draft keep their entries."""
        kept, own = self.drafts[draft].kept, self._draft_caches[draft]
        return lambda layer: own if layer in kept else self._cache

    def _plain(self) -> list[Update]:
        begun = time.perf_counter()
        ids = self._last_tokens()
        place = self.trunk.place(self._starts(), 1, self.capacity)
        hidden = self.trunk.run(
            self.target.stages, self.target.form, self.trunk.embed(ids), place, lambda _: self._cache
        )
        logits = self.trunk.logits(hidden)  # (B, 1, V)
        chosen = self.choice.choose(logits, self.active)  # (B, 1)
        seconds = time.perf_counter() - begun
        self.clock.plain += seconds
        for sequence in self.active:
            sequence.steps.append(Step(0, 0))
        self.pacer.note(Round(None, 0, (0,) * len(self.active), (), 0.0, seconds))
        return self._extend(chosen, [0] * len(self.active), logits)

    def _speculate(self, index: int, most: int) -> list[Update]:
        draft = self.drafts[index]
        begun = time.perf_counter()
        made = self._draft(draft, self._cache_of(index), most)
        drafted = torch.cat([proposal.ids for proposal in made.proposals], 1)  # (B, d)
        verified_from = time.perf_counter()
        hidden = torch.cat(made.hidden, 1)  # (B, d + 1, D)
        place = self.trunk.place(self._starts(), hidden.shape[1], self.capacity)
        hidden = self.trunk.run(draft.rest, self.target.form, hidden, place, lambda _: self._cache)
        logits = self.trunk.logits(hidden)  # (B, d + 1, V)
        taken, following = self.choice.accept(logits, made.proposals, self.active)
        counts: list[int] = taken.tolist()
        ended = time.perf_counter()
        self.clock.draft += verified_from - begun
        self.clock.verify += ended - verified_from
        for sequence, count in zip(self.active, counts, strict=True):
            sequence.steps.append(Step(drafted.shape[1], count))
        confidences = _by_sequence(made.proposals)
        self.pacer.note(
            Round(index, drafted.shape[1], tuple(counts), confidences, verified_from - begun, ended - verified_from)
        )
        tokens = torch.cat([drafted, drafted[:, :1]], 1).scatter_(1, taken[:, None], following[:, None])
        return self._extend(tokens, counts, logits)

    def _draft(self, draft: Draft, cache_of: CacheOf, most: int) -> _Drafted:
        """Propose up to `most` tokens a sequence, and run the shared prefix over the last of them too."""
        made, ids = _Drafted(), self._last_tokens()
        starts = self._starts()
        while True:
            place = self.trunk.place([start + len(made.proposals) for start in starts], 1, self.capacity)
            hidden = self.trunk.run(draft.shared, draft.form, self.trunk.embed(ids), place, cache_of)  # (B, 1, D)
            made.hidden.append(hidden)
            last = len(made.proposals) == most or not self._goes_on(made)
            if not last or draft.kept:  # what the draft keeps must be whole, even if all its tokens are taken
                hidden = self.trunk.run(draft.alone, draft.form, hidden, place, cache_of)
            if last:
                return made
            proposal = self.choice.propose(
                draft.head.logits(hidden),
                draft.head.vocabulary,
                self.active,
                made.proposals,
                with_confidence=self.pacer.wants_confidence,
            )
            made.proposals.append(proposal)
            ids = proposal.ids

    def _goes_on(self, made: _Drafted) -> bool:
        return not made.proposals or self.pacer.goes_on(len(made.proposals), _by_sequence(made.proposals))

    def _last_tokens(self) -> Tensor:
        """(B, 1)"""
        return torch.tensor([sequence.tokens[-1:] for sequence in self.active], device=self.trunk.device)

    def _starts(self) -> list[int]:
        return [sequence.start for sequence in self.active]

    def _extend(self, tokens: Tensor, accepted: Many[int], logits: Tensor) -> list[Update]:
        """Give each sequence its accepted tokens and the target's after them.

        Args:
            tokens: (B, n), int64; those beyond `accepted[b]` + 1 do not count.
            logits: the target's, (B, n, V).
        """
        updates = []
        rows: list[list[int]] = tokens.tolist()
        for row, (sequence, new, count) in enumerate(zip(self.active, rows, accepted, strict=True)):
            new = new[: count + 1]
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
