"""A draft with cache entries of its own, used now and then: what it missed must not make it worse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from truedepth.decoding.engine import Engine
from truedepth.decoding.pacing import Round
from truedepth.decoding.request import Request
from truedepth.plan import DepthPlan


class NowAndThen:
    """Three plain steps, then a round with one draft, three plain steps, then one with the other, and so on."""

    wants_confidence = wants_shadow = False

    def __init__(self) -> None:
        self.steps = -1

    def begin(self, batch: int) -> tuple[int, int] | None:
        self.steps += 1
        return None if self.steps % 4 < 3 else (self.steps // 4 % 2, 3)

    def goes_on(self, drafted: int, confidences: Sequence[Sequence[float]]) -> bool:
        return True

    def note(self, step: Round) -> None:
        pass


def test_a_draft_equal_to_the_target_is_always_right(
    tiny_model: Callable[..., Any], token_ids: Callable[..., Any]
) -> None:
    requests = [Request(token_ids(1, length, seed=length)[0].tolist(), 40, ignore_end=True) for length in (5, 11)]
    with Engine(tiny_model("llama")) as engine:
        # The whole model, with all entries of its own; and one that must not be mistaken for it.
        drafts = [engine.draft(DepthPlan.parse(notation, 6), share=False) for notation in ("0-5", "0-3")]
        results = engine.generate(requests, drafts=drafts, pacer=NowAndThen())
        plain = engine.generate(requests)
    for result, expected in zip(results, plain, strict=True):
        assert result.token_ids == expected.token_ids
        rounds = [step for step in result.steps if step.drafted]
        assert len(rounds) > 2
        assert all(step.accepted == 3 for step in rounds[:-1:2])
