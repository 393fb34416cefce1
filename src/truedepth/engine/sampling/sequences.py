"""The sequences of a batch while they are written."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from truedepth.engine.sampling.request import Request
from truedepth.engine.sampling.result import DecodingStep, FinishReason, GenerationResult, Timings

if TYPE_CHECKING:
    from truedepth.engine.sampling.detokenizer import StopChecker


@dataclass
class Clock:
    """Where a batch's time goes, in seconds."""

    started: float = field(default_factory=time.perf_counter)
    prefill: float = 0.0
    draft: float = 0.0
    verify: float = 0.0
    plain: float = 0.0

    def elapsed(self) -> float:
        return time.perf_counter() - self.started


@dataclass
class SequenceState:
    """One sequence: its tokens, and how it came by them.

    Attributes:
        index: which request it answers.
        tokens: prompt and new tokens. All but the last have cache entries.
        ends: tokens that end it.
        stop_checker: sees its tokens, and turns them into text where it is a detokenizer; None without a tokenizer.
    """

    index: int
    request: Request
    ends: frozenset[int]
    stop_checker: StopChecker | None
    tokens: list[int] = field(init=False)
    from_draft: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    steps: list[DecodingStep] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    timings: Timings = field(default_factory=Timings)

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt_ids)
        seed = self.request.sampling_params.seed
        # Numbers drawn one by one, from a generator of its own: a batch does not change what a seed gives.
        self._random = random.Random(secrets.randbits(64) if seed is None else seed)

    @property
    def start(self) -> int:
        """Where its next pass begins: the position of its last token."""
        return len(self.tokens) - 1

    @property
    def new_tokens(self) -> int:
        return len(self.tokens) - len(self.request.prompt_ids)

    @property
    def room(self) -> int:
        """How many more tokens it may write."""
        return self.request.max_new_tokens - self.new_tokens

    def uniforms(self, count: int) -> list[float]:
        """Independent numbers in [0, 1)."""
        return [self._random.random() for _ in range(count)]

    def extend(self, tokens: Sequence[int], drafted: int, logprobs: Sequence[float], clock: Clock) -> int:
        """Take the tokens of a step, up to the one that ends the sequence.

        Args:
            tokens: those that the target accepted or chose, in order.
            drafted: how many of the first of them were drafted.
            logprobs: one for each, or none.
            clock: the batch's.

        Returns:
            How many were taken.
        """
        taken = 0
        for taken, token in enumerate(tokens, 1):
            self.tokens.append(token)
            self.from_draft.append(taken <= drafted)
            self.logprobs += logprobs[taken - 1 : taken]
            self.finish_reason = self._finished(token)
            if self.finish_reason:
                break
        now = clock.elapsed()
        first = self.timings.first_token or now
        self.timings = Timings(clock.prefill, clock.draft, clock.verify, clock.plain, first, now)
        return taken

    def _finished(self, token: int) -> FinishReason | None:
        ends = token in self.ends
        if self.stop_checker is not None and self.stop_checker.add(token, ends=ends):
            return "stop"
        if ends:
            return "stop"
        return "length" if self.room <= 0 else None

    def result(self) -> GenerationResult:
        """What it came to."""
        return GenerationResult(
            token_ids=tuple(self.tokens[len(self.request.prompt_ids) :]),
            text="" if self.stop_checker is None else self.stop_checker.finish(),
            finish_reason=self.finish_reason or "cancelled",
            prompt_tokens=len(self.request.prompt_ids),
            from_draft=tuple(self.from_draft),
            steps=tuple(self.steps),
            timings=self.timings,
            logprobs=tuple(self.logprobs) if self.request.logprobs else None,
        )
