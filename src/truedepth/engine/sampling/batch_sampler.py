"""Choosing tokens for a batch whose sequences may each sample in their own way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from truedepth.engine.sampling.acceptance import accept_greedy, accept_sampled
from truedepth.engine.sampling.logits_sampler import LogitsSampler, draw, most_likely, probabilities
from truedepth.engine.sampling.sequences import SequenceState


@dataclass(frozen=True, eq=False)
class Proposal:
    """A drafted token for each sequence.

    Attributes:
        ids: (B, 1), int64.
        probs: what they were drawn from, (B, 1, V); None where all sequences are greedy.
        confidences: the draft's probability of each, or nothing where not asked for.
        ended: whether each sequence ends with it or ended with one drafted before it, if they are taken.
    """

    ids: Tensor
    probs: Tensor | None
    confidences: tuple[float, ...]
    ended: tuple[bool, ...]


def drafted_by_row(proposals: Sequence[Proposal]) -> list[int]:
    """How many tokens were drafted for each sequence: what comes after one that ends it is not for it."""
    rows = zip(*(proposal.ended for proposal in proposals), strict=True)
    return [len(own) - sum(own[:-1]) for own in rows]


class BatchSampler:
    """How each sequence's tokens are chosen.

    Args:
        samplers: by `SequenceState.index`.
        vocabulary_size: V, columns of the target's logits.
    """

    def __init__(self, samplers: Sequence[LogitsSampler], vocabulary_size: int) -> None:
        self._samplers, self._vocabulary_size = samplers, vocabulary_size

    def choose(self, logits: Tensor, sequences: Sequence[SequenceState]) -> Tensor:
        """The next token of each sequence: (B, 1, V) to (B, 1)."""
        processed = self._process(logits, sequences, [])
        if self._all_greedy(sequences):
            return most_likely(processed)
        uniforms = _uniforms(sequences, [1] * len(sequences), 1).to(logits.device)
        return draw(self._probabilities(processed, sequences)[:, 0], uniforms[:, 0])[:, None]

    def propose(
        self,
        logits: Tensor,
        vocabulary: Tensor | None,
        sequences: Sequence[SequenceState],
        before: Sequence[Proposal],
        *,
        with_confidence: bool,
    ) -> Proposal:
        """The next drafted token of each sequence.

        Args:
            logits: the draft's, (B, 1, V').
            vocabulary: the token id of each column, (V',); None: column i is token i.
            before: the tokens drafted before it.
        """
        greedy = self._all_greedy(sequences)
        plain = greedy and not any(self._samplers[sequence.index].processors for sequence in sequences)
        if vocabulary is not None and not plain:
            whole = logits.new_full((*logits.shape[:-1], self._vocabulary_size), -torch.inf)
            logits, vocabulary = whole.index_copy_(-1, vocabulary, logits), None
        processed = logits if plain else self._process(logits, sequences, before)
        if greedy:
            columns = most_likely(processed)  # (B, 1)
            confidences = _confidences(processed, columns) if with_confidence else ()
            ids = columns if vocabulary is None else vocabulary[columns]
            return Proposal(ids, None, confidences, _ended(ids, sequences, before))
        probs = self._probabilities(processed, sequences)  # (B, 1, V)
        # No number for a token that is not for its sequence: what a seed gives does not depend on the batch.
        counts = [
            int(len(before) < _limit(sequence) and not (before and before[-1].ended[row]))
            for row, sequence in enumerate(sequences)
        ]
        ids = draw(probs[:, 0], _uniforms(sequences, counts, 1)[:, 0].to(logits.device))[:, None]
        found: list[float] = probs[:, 0].gather(1, ids)[:, 0].tolist() if with_confidence else []
        return Proposal(ids, probs, tuple(found), _ended(ids, sequences, before))

    def accept(
        self, logits: Tensor, proposals: Sequence[Proposal], sequences: Sequence[SequenceState]
    ) -> tuple[Tensor, Tensor]:
        """How many drafted tokens each sequence takes, (B,), and the target's token after them, (B,).

        Args:
            logits: the target's, (B, d + 1, V).
        """
        drafted = torch.cat([proposal.ids for proposal in proposals], 1)  # (B, d)
        processed = self._process(logits, sequences, proposals)
        if self._all_greedy(sequences):
            return accept_greedy(drafted, most_likely(processed))
        target = self._probabilities(processed, sequences)  # (B, d + 1, V)
        draft = torch.cat([proposal.probs for proposal in proposals if proposal.probs is not None], 1)  # (B, d, V)
        limits = [
            min(_limit(sequence), own) for sequence, own in zip(sequences, drafted_by_row(proposals), strict=True)
        ]
        uniforms = _uniforms(sequences, [limit + 1 for limit in limits], len(proposals) + 1).to(logits.device)
        return accept_sampled(drafted, target, draft, uniforms, torch.tensor(limits, device=logits.device))

    def _all_greedy(self, sequences: Sequence[SequenceState]) -> bool:
        return all(self._samplers[sequence.index].greedy for sequence in sequences)

    def _process(self, logits: Tensor, sequences: Sequence[SequenceState], drafted: Sequence[Proposal]) -> Tensor:
        """The logits to choose from, (B, T, V): the last T positions of the context with what was drafted."""
        samplers = [self._samplers[sequence.index] for sequence in sequences]
        if not any(sampler.processors for sampler in samplers):
            return logits
        tokens = logits.shape[1]
        columns: list[list[int]] = torch.cat([proposal.ids for proposal in drafted], 1).tolist() if drafted else []
        rows = []
        for row, (sampler, sequence) in enumerate(zip(samplers, sequences, strict=True)):
            context = sequence.tokens + (columns[row] if drafted else [])
            contexts = [context[: len(context) - tokens + 1 + at] for at in range(tokens)]
            rows.append((sampler, contexts))
        if all(sampler == samplers[0] for sampler in samplers):
            return samplers[0].process(logits, [contexts for _, contexts in rows])
        parts = [sampler.process(logits[row, None], [contexts]) for row, (sampler, contexts) in enumerate(rows)]
        return torch.cat(parts)

    def _probabilities(self, processed: Tensor, sequences: Sequence[SequenceState]) -> Tensor:
        """(B, T, V); a greedy sequence's most likely token has all the probability."""
        probs = probabilities(processed)
        for row, sequence in enumerate(sequences):
            if self._samplers[sequence.index].greedy:
                probs[row] = torch.zeros_like(probs[row]).scatter_(-1, most_likely(processed[row])[:, None], 1.0)
        return probs


def _limit(sequence: SequenceState) -> int:
    """The most drafted tokens that a sequence may take: the target always adds one."""
    return sequence.room - 1


def _ended(ids: Tensor, sequences: Sequence[SequenceState], before: Sequence[Proposal]) -> tuple[bool, ...]:
    """Whether each sequence's token, (B, 1), ends it, or one of those drafted before did."""
    if not any(sequence.ends for sequence in sequences):  # reading the tokens would wait for the device
        return (False,) * len(sequences)
    tokens: list[int] = ids[:, 0].tolist()
    return tuple(
        bool(before and before[-1].ended[row]) or token in sequence.ends
        for row, (token, sequence) in enumerate(zip(tokens, sequences, strict=True))
    )


def _uniforms(sequences: Sequence[SequenceState], counts: Sequence[int], width: int) -> Tensor:
    """So many of each sequence's own numbers, then zeros: (B, width), float64."""
    drawn = [sequence.uniforms(count) for sequence, count in zip(sequences, counts, strict=True)]
    filled = [numbers + [0.0] * (width - len(numbers)) for numbers in drawn]
    return torch.tensor(filled, dtype=torch.float64)


def _confidences(logits: Tensor, columns: Tensor) -> tuple[float, ...]:
    """The probability of each sequence's token: (B, 1, V), (B, 1)."""
    probs = logits[:, 0].softmax(-1, dtype=torch.float32).gather(1, columns)[:, 0]
    found: list[float] = probs.tolist()
    return tuple(found)
