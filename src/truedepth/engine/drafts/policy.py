"""How many tokens to draft before verifying."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Round:
    """What a step did and took, for a policy to decide by.

    Attributes:
        draft: index of the draft that was used, or None for a plain step.
        drafted: tokens drafted for each sequence.
        accepted: how many of them each sequence took.
        confidences: the draft's probability of its choices, by sequence and position; empty unless asked for.
        draft_seconds, verify_seconds: what drafting and the target's pass took.
        shadow: for each draft, how many of the tokens looked at it would have drafted right, and how many those were,
            told from hidden states that the step made anyway; empty unless asked for, (0, 0) for a draft that is not
            a mere beginning of the target.
    """

    draft: int | None
    drafted: int
    accepted: tuple[int, ...]
    confidences: tuple[tuple[float, ...], ...]
    draft_seconds: float
    verify_seconds: float
    shadow: tuple[tuple[int, int], ...] = ()


class SpeculationPolicy(Protocol):
    """Decides, before each step, which draft to use and, after each drafted token, whether to draft another.

    Attributes:
        wants_confidence: whether `goes_on` looks at confidences, which cost a softmax over the draft's logits.
        wants_shadow: whether the coming step shall tell `Round.shadow`, which costs each draft's head once. Asked
            after `begin`.
    """

    wants_confidence: bool
    wants_shadow: bool

    def begin(self, batch: int) -> tuple[int, int] | None:
        """The index of the draft to use and the most tokens to draft; None for a plain step."""
        ...

    def goes_on(self, drafted: int, confidences: Sequence[Sequence[float]]) -> bool:
        """Whether to draft one more token for each sequence.

        Args:
            drafted: tokens drafted so far in this round, at least 1.
            confidences: the draft's probability of each, by sequence and position.
        """
        ...

    def note(self, step: Round) -> None:
        """Learn from a step."""
        ...


@dataclass
class FixedPolicy:
    """Always the same draft and number of tokens."""

    length: int
    draft: int = 0
    wants_confidence: bool = False
    wants_shadow: bool = False

    def begin(self, batch: int) -> tuple[int, int] | None:
        return self.draft, self.length

    def goes_on(self, drafted: int, confidences: Sequence[Sequence[float]]) -> bool:
        return True

    def note(self, step: Round) -> None:
        pass


class NoSpeculation:
    """Plain decoding."""

    wants_confidence = False
    wants_shadow = False

    def begin(self, batch: int) -> tuple[int, int] | None:
        return None

    def goes_on(self, drafted: int, confidences: Sequence[Sequence[float]]) -> bool:
        return False

    def note(self, step: Round) -> None:
        pass
