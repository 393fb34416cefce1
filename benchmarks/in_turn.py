"""Ways to answer the same requests, timed in turns; the answers must be the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from truedepth.engine.sampling.request import Request
from truedepth.records.progress import terminal


def in_turn(
    ways: dict[str, Callable[[Request], Any]], asked: Sequence[Request], repeats: int
) -> tuple[int, dict[str, Any]]:
    """The tokens of all answers; tokens a second, drafted and accepted tokens of each way, by name.

    One of the ways is `plain`.

    A way's time for a request is the best of `repeats`.
    """
    seconds, tokens = dict.fromkeys(ways, 0.0), 0
    drafted, accepted = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0)
    with terminal("Timing", len(asked)) as advance:
        for request in asked:
            best = dict.fromkeys(ways, float("inf"))
            answers = {}
            for _ in range(repeats):
                for name, way in ways.items():
                    begun = time.perf_counter()
                    answers[name] = way(request)
                    best[name] = min(best[name], time.perf_counter() - begun)
            wrong = [name for name, answer in answers.items() if answer.token_ids != answers["plain"].token_ids]
            if wrong:
                raise SystemExit(f"other tokens than plain decoding: {', '.join(wrong)}, prompt {request.prompt_ids}")
            tokens += len(answers["plain"].token_ids)
            for name, answer in answers.items():
                seconds[name] += best[name]
                drafted[name] += answer.drafted
                accepted[name] += answer.accepted
            advance()
    return tokens, {
        name: {
            "tokens_per_second": tokens / seconds[name],
            "drafted": drafted[name],
            "accepted": accepted[name],
            "acceptance": accepted[name] / drafted[name] if drafted[name] else None,
        }
        for name in ways
    }
