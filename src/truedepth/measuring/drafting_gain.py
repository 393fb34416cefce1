"""What a draft gains on one prompt: the same text plainly and with the draft, in turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Unpack, cast

from truedepth.engine.engine import Engine
from truedepth.engine.generation import Options, generate
from truedepth.engine.sampling.result import GenerationResult
from truedepth.errors import UsageError
from truedepth.measuring.timer import Spread, in_turns
from truedepth.records.progress import silent

RUNS = 3
"""Of each, after one of each that does not count."""

_OF_DRAFTS = ("draft", "num_speculative_tokens", "vocabulary")


@dataclass(frozen=True, slots=True)
class DraftingGain:
    """Speeds after the first token, of the same prompt.

    Attributes:
        plain_tokens_per_second, tokens_per_second: medians, without and with the draft.
        speedup: of a run with the draft over the plain run of the same round.
        same_text: whether all runs wrote the same tokens; None where they are sampled.
    """

    plain_tokens_per_second: float
    tokens_per_second: float
    speedup: Spread
    same_text: bool | None


def drafting_gain(engine: Engine, prompt: str, *, runs: int = RUNS, **options: Unpack[Options]) -> DraftingGain:
    """Time a draft against plain decoding.

    Args:
        engine: open on the model.
        runs: of each.
        options: what `generate` takes; a draft is among them. `progress` is shown the runs.

    Raises:
        UsageError: there is no draft, or the text has fewer than two tokens; and see `generate`.
    """
    progress = options.pop("progress", silent)
    plain = {name: value for name, value in options.items() if name not in _OF_DRAFTS}
    if not options.get("draft"):
        raise UsageError("there is nothing to compare plain decoding with; give a draft such as exit:8")
    ways = {"plain": cast(Options, plain), "drafted": options}
    results = in_turns(
        list(ways),
        lambda way, _: generate(engine, prompt, **ways[way]),
        rounds=runs,
        progress=progress,
        title="Comparing",
    )
    sampling_params = options.get("sampling_params")
    sampled = sampling_params is not None and sampling_params.temperature > 0
    return _gain(results["plain"], results["drafted"], sampled=sampled)


def _gain(plain: Sequence[GenerationResult], drafted: Sequence[GenerationResult], *, sampled: bool) -> DraftingGain:
    before, after = [_speed(result) for result in plain], [_speed(result) for result in drafted]
    return DraftingGain(
        plain_tokens_per_second=median(before),
        tokens_per_second=median(after),
        speedup=Spread.of([own / base for base, own in zip(before, after, strict=True)]),
        same_text=None if sampled else len({result.token_ids for result in (*plain, *drafted)}) == 1,
    )


def _speed(result: GenerationResult) -> float:
    if result.tokens_per_second is None:
        raise UsageError("the text ends with its first token, too soon to time anything; give another prompt")
    return result.tokens_per_second
