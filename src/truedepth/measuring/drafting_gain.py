"""What a draft gains on one prompt: the same text plainly and with the draft, in turns."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Unpack

from truedepth.engine.engine import Engine
from truedepth.engine.generation import Options, generate
from truedepth.engine.sampling.result import GenerationResult
from truedepth.errors import UsageError
from truedepth.measuring.speed import Spread
from truedepth.measuring.step_timing import undisturbed
from truedepth.records.progress import Progress, silent

RUNS = 3
"""Of each, after one of each that does not count."""

_OF_DRAFTS = ("draft", "num_speculative_tokens", "vocabulary")


@dataclass(frozen=True, slots=True)
class DraftingGain:
    """Speeds after the first token, of the same prompt.

    Attributes:
        plain_tokens_per_second, tokens_per_second: medians, without and with the draft.
        speedup: of a run with the draft over the plain run before it.
        same_text: whether all runs wrote the same tokens; None where they are sampled.
    """

    plain_tokens_per_second: float
    tokens_per_second: float
    speedup: Spread
    same_text: bool | None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and dicts."""
        return asdict(self)


def drafting_gain(
    engine: Engine, prompt: str, *, runs: int = RUNS, progress: Progress = silent, **options: Unpack[Options]
) -> DraftingGain:
    """Time a draft against plain decoding.

    Args:
        engine: open on the model.
        runs: of each.
        options: what `generate` takes; a draft is among them.

    Raises:
        UsageError: there is no draft, or the text has fewer than two tokens; and see `generate`.
    """
    plain_options: Any = {name: value for name, value in options.items() if name not in _OF_DRAFTS}
    if not options.get("draft"):
        raise UsageError("there is nothing to compare plain decoding with; give a draft such as exit:8")
    pairs: list[tuple[GenerationResult, GenerationResult]] = []
    with progress("Comparing", 2 * (runs + 1)) as advance:
        for _ in range(runs + 1):
            results = []
            for own in (plain_options, options):
                with undisturbed():
                    results.append(generate(engine, prompt, **own))
                advance()
            pairs.append((results[0], results[1]))
    return _gain(pairs[1:], sampled=not _is_greedy(options))


def _is_greedy(options: Options) -> bool:
    sampling_params = options.get("sampling_params")
    return sampling_params is None or sampling_params.temperature == 0


def _gain(pairs: list[tuple[GenerationResult, GenerationResult]], *, sampled: bool) -> DraftingGain:
    speeds = [(_speed(plain), _speed(drafted)) for plain, drafted in pairs]
    texts = {result.token_ids for pair in pairs for result in pair}
    return DraftingGain(
        plain_tokens_per_second=median(plain for plain, _ in speeds),
        tokens_per_second=median(drafted for _, drafted in speeds),
        speedup=Spread.of([drafted / plain for plain, drafted in speeds]),
        same_text=None if sampled else len(texts) == 1,
    )


def _speed(result: GenerationResult) -> float:
    if result.tokens_per_second is None:
        raise UsageError("the text ends with its first token, too soon to time anything; give another prompt")
    return result.tokens_per_second
