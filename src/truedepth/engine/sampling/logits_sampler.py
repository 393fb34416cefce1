"""How the next token is chosen from logits: which tokens may come, how likely each is, and the draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import NoneType
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from truedepth.errors import DecodingError, UsageError
from truedepth.records.given import require_type

BY_SCORES_ALONE = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper)


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token (greedy).
        top_k: sample from the k most likely tokens only.
        top_p: sample from the smallest set of tokens that has at least this probability (nucleus).
        min_p: sample from the tokens that have at least this share of the most likely token's probability.
        repetition_penalty: divides the positive logits of tokens that the sequence has already, and multiplies the
            negative ones; 1 changes nothing.
        seed: the same seed gives the same text; None: a new one each time.

    Raises:
        UsageError: a value that is out of range, or top_k, top_p or min_p with temperature 0.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("temperature", "repetition_penalty"):
            require_type(name, getattr(self, name), (int, float), "a number")
        for name in ("top_p", "min_p"):
            require_type(name, getattr(self, name), (int, float, NoneType), "a number, or None")
        for name in ("top_k", "seed"):
            require_type(name, getattr(self, name), (int, NoneType), "a whole number, or None")
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise UsageError(f"temperature is {self.temperature:g}; it must be 0 (greedy) or above")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top-k is {self.top_k}; it must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"top-p is {self.top_p:g}; it must be above 0 and at most 1")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise UsageError(f"min-p is {self.min_p:g}; it must be at least 0 and at most 1")
        if not (self.repetition_penalty > 0 and math.isfinite(self.repetition_penalty)):
            raise UsageError(f"the repetition penalty is {self.repetition_penalty:g}; it must be above 0")
        filters = (self.top_k, self.top_p, self.min_p)
        if self.temperature == 0 and any(value is not None for value in filters):
            raise UsageError("top-k, top-p and min-p need sampling; give a temperature above 0 too")

    def processors(self) -> LogitsProcessorList:
        """The same in terms of `transformers`, in its order."""
        found = LogitsProcessorList()
        if self.repetition_penalty != 1:
            found.append(RepetitionPenaltyLogitsProcessor(float(self.repetition_penalty)))
        if self.temperature not in (0, 1):
            found.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k is not None:
            found.append(TopKLogitsWarper(self.top_k))
        if self.top_p is not None:
            found.append(TopPLogitsWarper(self.top_p))
        if self.min_p is not None:
            found.append(MinPLogitsWarper(self.min_p))
        return found


@dataclass(frozen=True, eq=False)
class LogitsSampler:
    """Turns logits into choices for the sequences of a batch, which all sample alike.

    Attributes:
        greedy: take the most likely token.
        processors: change the logits before.
    """

    greedy: bool
    processors: LogitsProcessorList

    @classmethod
    def of(cls, sampling_params: SamplingParams) -> LogitsSampler:
        """The same one for all that sample alike, so that they can be processed together."""
        return _sampler(replace(sampling_params, seed=None))

    def process(self, logits: Tensor, contexts: Sequence[Sequence[Sequence[int]]]) -> Tensor:
        """The logits that choices are made from.

        Args:
            logits: (B, T, V).
            contexts: for each of them the tokens that stand before the one to choose.

        Returns:
            (B, T, V), float32.

        Raises:
            DecodingError: logits that are not numbers.
        """
        logits = logits.float()
        if not self.processors:
            return logits
        batch, tokens, size = logits.shape
        if all(type(processor) in BY_SCORES_ALONE for processor in self.processors):
            nothing: Any = logits.new_empty(batch * tokens, 0, dtype=torch.long)  # it asks for a LongTensor
            return self.processors(nothing, logits.reshape(-1, size)).view(batch, tokens, size)
        before = [context for own in contexts for context in own]  # B * T
        scores = logits.reshape(-1, size)
        processed = torch.empty_like(scores)
        for length in {len(context) for context in before}:
            rows = [row for row, context in enumerate(before) if len(context) == length]
            ids: Any = torch.tensor([before[row] for row in rows], device=logits.device)
            processed[rows] = self.processors(ids, scores[rows])
        return processed.view(batch, tokens, size)


@lru_cache(maxsize=256)
def _sampler(sampling_params: SamplingParams) -> LogitsSampler:
    return LogitsSampler(sampling_params.temperature == 0, sampling_params.processors())


def most_likely(logits: Tensor) -> Tensor:
    """(..., V) to (...), int64.

    Raises:
        DecodingError: logits that are not numbers.
    """
    best, ids = logits.max(-1)
    _refuse_unless(best > -torch.inf)
    return ids


def probabilities(logits: Tensor) -> Tensor:
    """(..., V) to (..., V), float32.

    Raises:
        DecodingError: logits that are not numbers.
    """
    probs = logits.softmax(-1, dtype=torch.float32)
    _refuse_unless(probs[..., 0] >= 0)
    return probs


def draw(probs: Tensor, uniforms: Tensor) -> Tensor:
    """The token at which the cumulated probability passes a uniform number in [0, 1).

    Args:
        probs: (B, V); need not add up to one.
        uniforms: (B,).

    Returns:
        (B,), int64.
    """
    cumulated = probs.cumsum(-1, dtype=torch.float64)  # (B, V)
    threshold = uniforms[:, None].double() * cumulated[:, -1:]
    # right=True: never a token of probability zero, not even for the number zero.
    ids = torch.searchsorted(cumulated, threshold, right=True)[:, 0]
    return ids.clamp_max(probs.shape[-1] - 1)


def _refuse_unless(sound: Tensor) -> None:
    if not bool(sound.all()):
        raise DecodingError(
            "the model's logits are not numbers (NaN or nothing but minus infinity), so no token can be chosen; "
            "load it in a wider dtype such as float32, or check its weights"
        )
