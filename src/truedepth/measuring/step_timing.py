"""Timing the parts of a decode step with the decoding engine, interleaved in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median

import torch
from torch import Tensor

from truedepth.engine.drafts.heads.draft_head import LMHead
from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary
from truedepth.engine.engine import Engine
from truedepth.engine.runner.caches import KVCache
from truedepth.engine.runner.model_runner import ModelRunner
from truedepth.engine.sampling.logits_sampler import most_likely
from truedepth.measuring.pairs import PairSaving, paired
from truedepth.measuring.step_costs import StepCosts
from truedepth.measuring.timer import in_turns, now
from truedepth.models.context import context_length
from truedepth.plan import FORMS, Form, Stage
from truedepth.records.progress import Progress, silent

TOKENS = (1, 2, 3, 5, 9, 17)
"""Passes over so many tokens are timed; others lie between them."""

_CONTEXT = 160
"""Cache entries that a timed pass finds, where the model's context allows."""

_ROUNDS = 15
_LEAST_ROUNDS = 5
_SECONDS = 20.0
"""No further round begins after this time, once `_LEAST_ROUNDS` are done."""

_Probe = tuple[str, int | Form]
"""What is timed: a name, and the number of tokens, the size of a vocabulary or the form of groups."""


def measure_step_costs(
    engine: Engine, vocabularies: Sequence[DraftVocabulary], progress: Progress = silent
) -> StepCosts:
    """Time the parts of a step, taking turns, after a round that does not count. Medians over the rounds.

    Args:
        engine: its target is the unmodified model.
        vocabularies: of drafts, each of another size.
    """
    runner, depth = engine.runner, engine.target.num_layers
    with torch.inference_mode():
        probes = _probes(engine, vocabularies)

        def seconds(probe: _Probe, _: int) -> float:
            start = now(runner.device)
            probes[probe]()
            return now(runner.device) - start

        times = in_turns(
            list(probes),
            seconds,
            rounds=_ROUNDS,
            least_rounds=_LEAST_ROUNDS,
            max_seconds=_SECONDS,
            progress=progress,
            title="Timing the parts of a step",
        )
    found = {probe: median(values) for probe, values in times.items()}
    layer_seconds = {tokens: own / depth for tokens, own in _by_tokens("layers", found).items()}

    def savings(pairs: Sequence[float]) -> list[float]:
        return [(alone - together) / (depth // 2) for alone, together in zip(times["layers", 1], pairs, strict=True)]

    return StepCosts(
        num_layers=depth,
        begin_seconds=found["begin", 1],
        layer_seconds=layer_seconds,
        head_seconds=_by_tokens("head", found),
        draft_head_seconds={len(own.ids): found["draft head", len(own.ids)] for own in vocabularies},
        pair_seconds={
            form: PairSaving.of(savings(times["pairs", form])).pair_seconds(layer_seconds[1])
            for form in FORMS
            if ("pairs", form) in times
        },
    )


def _probes(engine: Engine, vocabularies: Sequence[DraftVocabulary]) -> dict[_Probe, Callable[[], object]]:
    runner, target = engine.runner, engine.target
    most = max(TOKENS)
    context = context_length(engine.model.config)
    context_tokens = _CONTEXT if context is None else max(1, min(_CONTEXT, context - most))
    ids = torch.arange(context_tokens + most, device=runner.device)[None] % runner.vocabulary_size  # (1, P + T)
    cache = KVCache(1, context_tokens + most)

    def run(stages: Sequence[Stage], form: Form, start: int, end: int) -> Callable[[], Tensor]:
        context = runner.context([start], end - start, cache.capacity)
        embedded = runner.embed(ids[:, start:end])
        return lambda: runner.run(stages, form, embedded, context, lambda _: cache)

    last = run(target.stages, target.form, 0, context_tokens)()[:, -1:]  # (1, 1, D)
    probes: dict[_Probe, Callable[[], object]] = {
        ("begin", 1): lambda: (runner.context([context_tokens], 1, cache.capacity), runner.embed(ids[:, :1]))
    }
    for count in TOKENS:
        probes["layers", count] = run(target.stages, target.form, context_tokens, context_tokens + count)
        probes["head", count] = _head(runner, last.repeat(1, count, 1))
    for vocabulary in vocabularies:
        probes["draft head", len(vocabulary.ids)] = _draft_head(LMHead(runner, vocabulary), last)
    for form in FORMS:
        if target.num_layers > 1:
            pairs = paired(target.num_layers, form).stages
            probes["pairs", form] = run(pairs, form, context_tokens, context_tokens + 1)
    return probes


def _head(runner: ModelRunner, hidden: Tensor) -> Callable[[], object]:
    return lambda: most_likely(runner.logits(hidden).float()).tolist()


def _draft_head(head: LMHead, hidden: Tensor) -> Callable[[], object]:
    def choose() -> object:
        columns = most_likely(head.logits(hidden).float())
        return (columns if head.vocabulary is None else head.vocabulary[columns]).tolist()

    return choose


def _by_tokens(name: str, found: Mapping[_Probe, float]) -> dict[int, float]:
    """Seconds by the number of tokens. Fewer tokens never take longer than more: that was other work on the machine."""
    return {tokens: min(found[name, more] for more in TOKENS if more >= tokens) for tokens in TOKENS}
