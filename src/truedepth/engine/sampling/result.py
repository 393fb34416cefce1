"""What decoding returns: tokens, and the figures that tables and plots are made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import zip_longest
from statistics import fmean
from typing import Any, Literal

FinishReason = Literal["stop", "length", "cancelled"]
"""`stop`: an end token, a stop token or a stop string. `length`: as many new tokens as were asked for. `cancelled`:
neither, since decoding was broken off."""


@dataclass(frozen=True, slots=True)
class DecodingStep:
    """One step of a sequence: a round of drafting and verifying, or a plain step.

    Attributes:
        drafted: tokens that the draft proposed; 0 in a plain step.
        accepted: how many of them the target took. The step yields one token more: the target's own.
    """

    drafted: int
    accepted: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds, of the batch that the sequence was part of until it finished.

    Attributes:
        prefill: until the prompt's last logits are there.
        draft: drafting.
        verify: target passes over drafted tokens.
        plain: target passes over one token a sequence.
        first_token: from the call until the first token.
        total: from the call until the last token.
    """

    prefill: float = 0.0
    draft: float = 0.0
    verify: float = 0.0
    plain: float = 0.0
    first_token: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """A sequence that was written.

    Attributes:
        token_ids: new tokens, the end token included.
        text: what they add to the prompt when both are decoded together, without special tokens and cut before a stop
            string; empty where there is no tokenizer.
        finish_reason: see `FinishReason`.
        prompt_tokens: tokens read.
        from_draft: for each new token whether the draft proposed it.
        steps: in order. The first token comes with the prompt, from no step.
        timings: seconds.
        logprobs: for each new token its log probability under the target, before sampling changes it; None where not
            asked for.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    from_draft: tuple[bool, ...]
    steps: tuple[DecodingStep, ...]
    timings: Timings
    logprobs: tuple[float, ...] | None = None

    @property
    def drafted(self) -> int:
        """Tokens that the draft proposed."""
        return sum(step.drafted for step in self.steps)

    @property
    def accepted(self) -> int:
        """Tokens of the draft that the target took."""
        return sum(step.accepted for step in self.steps)

    @property
    def acceptance(self) -> float | None:
        """Share of the drafted tokens that the target took; None where nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def acceptance_by_position(self) -> tuple[float, ...]:
        """Share of the rounds that took their first drafted token, their second, ..., of those that had one."""
        return shares_by_position([(step.drafted, step.accepted) for step in self.steps if step.drafted])

    @property
    def tokens_per_second(self) -> float | None:
        """New tokens after the first, over the time they took; None where there is no second token."""
        seconds = self.timings.total - self.timings.first_token
        return (len(self.token_ids) - 1) / seconds if len(self.token_ids) > 1 and seconds > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, in the form of `truedepth generate --json`."""
        return {
            "token_ids": list(self.token_ids),
            "text": self.text,
            "finish_reason": self.finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "timings": asdict(self.timings),
            "drafted": [step.drafted for step in self.steps],
            "accepted": [step.accepted for step in self.steps],
            "from_draft": list(self.from_draft),
            "acceptance": self.acceptance,
            "acceptance_by_position": list(self.acceptance_by_position),
            "tokens_per_second": self.tokens_per_second,
            "logprobs": None if self.logprobs is None else list(self.logprobs),
        }


def shares_by_position(rounds: Iterable[tuple[int, int]]) -> tuple[float, ...]:
    """Share of rounds that took their first drafted token, their second, ..., of those that had one.

    Args:
        rounds: drafted and accepted tokens of each.
    """
    columns: Any = zip_longest(*([at < accepted for at in range(drafted)] for drafted, accepted in rounds))
    return tuple(fmean(taken for taken in column if taken is not None) for column in columns)
