"""Timing the parts of a decode step with the decoding engine, interleaved in one process."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median, quantiles

import torch
from torch import Tensor

from truedepth.engine.drafts.heads.draft_head import LMHead
from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary
from truedepth.engine.engine import Engine
from truedepth.engine.runner.caches import KVCache
from truedepth.engine.runner.model_runner import ModelRunner
from truedepth.engine.sampling.logits_sampler import most_likely
from truedepth.measuring.speed import now
from truedepth.measuring.step_costs import StepCosts
from truedepth.plan import FORMS, DepthPlan, Form, Stage
from truedepth.records.progress import Progress, silent

TOKENS = (1, 2, 3, 5, 9, 17)
"""Passes over so many tokens are timed; others lie between them."""

_CONTEXT = 160
"""Cache entries that a timed pass finds, where the model's context allows."""

_ROUNDS = 15
_LEAST_ROUNDS = 5
_SECONDS = 20.0
"""No further round begins after this time, once `_LEAST_ROUNDS` are done."""

_Probes = dict[tuple[str, int | Form], Callable[[], object]]
"""What is timed, by name, and by the number of tokens, the size of a vocabulary or the form of groups."""


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
        times = _run(probes, runner.device, progress)
    found = {name: median(values) for name, values in times.items()}
    layer_seconds = {tokens: seconds / depth for tokens, seconds in _by_tokens("layers", found).items()}
    return StepCosts(
        num_layers=depth,
        begin_seconds=found["begin", 1],
        layer_seconds=layer_seconds,
        head_seconds=_by_tokens("head", found),
        draft_head_seconds={len(part.ids): found["draft head", len(part.ids)] for part in vocabularies},
        pair_seconds={
            form: _pair_seconds(layer_seconds[1], times["layers", 1], times["pairs", form], depth // 2)
            for form in FORMS
            if ("pairs", form) in times
        },
    )


@contextmanager
def undisturbed() -> Iterator[None]:
    """No garbage collection; afterwards as it was."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _run(probes: _Probes, device: torch.device, progress: Progress) -> dict[tuple[str, int | Form], list[float]]:
    times: dict[tuple[str, int | Form], list[float]] = {name: [] for name in probes}
    names = list(probes)
    began = time.perf_counter()
    with undisturbed(), progress("Timing the parts of a step", _ROUNDS + 1) as advance:
        for turn in range(_ROUNDS + 1):
            if turn > _LEAST_ROUNDS and time.perf_counter() - began > _SECONDS:
                break
            for name in names if turn % 2 else reversed(names):
                start = now(device)
                probes[name]()
                seconds = now(device) - start
                if turn > 0:
                    times[name].append(seconds)
            advance()
    return times


def _probes(engine: Engine, vocabularies: Sequence[DraftVocabulary]) -> _Probes:
    runner, target = engine.runner, engine.target
    most = max(TOKENS)
    positions = getattr(engine.model.config.get_text_config(), "max_position_embeddings", None)
    length = max(1, min(_CONTEXT, positions - most)) if positions else _CONTEXT
    ids = torch.arange(length + most, device=runner.device)[None] % runner.vocabulary_size  # (1, P + T)
    cache = KVCache(1, length + most)

    def run(stages: Sequence[Stage], form: Form, start: int, end: int) -> Callable[[], Tensor]:
        context = runner.context([start], end - start, cache.capacity)
        embedded = runner.embed(ids[:, start:end])
        return lambda: runner.run(stages, form, embedded, context, lambda _: cache)

    last = run(target.stages, target.form, 0, length)()[:, -1:]  # (1, 1, D)
    probes: _Probes = {("begin", 1): lambda: (runner.context([length], 1, cache.capacity), runner.embed(ids[:, :1]))}
    for count in TOKENS:
        probes["layers", count] = run(target.stages, target.form, length, length + count)
        probes["head", count] = _head(runner, last.repeat(1, count, 1))
    for part in vocabularies:
        probes["draft head", len(part.ids)] = _draft_head(LMHead(runner, part), last)
    for form in FORMS:
        if target.num_layers > 1:
            probes["pairs", form] = run(_pairs(target.num_layers), form, length, length + 1)
    return probes


def _head(runner: ModelRunner, hidden: Tensor) -> Callable[[], object]:
    return lambda: most_likely(runner.logits(hidden).float()).tolist()


def _draft_head(head: LMHead, hidden: Tensor) -> Callable[[], object]:
    def choose() -> object:
        columns = most_likely(head.logits(hidden).float())
        return (columns if head.vocabulary is None else head.vocabulary[columns]).tolist()

    return choose


def _by_tokens(name: str, found: Mapping[tuple[str, int | Form], float]) -> dict[int, float]:
    """Seconds by the number of tokens. Fewer tokens never take longer than more: that was other work on the machine."""
    return {tokens: min(found[name, more] for more in TOKENS if more >= tokens) for tokens in TOKENS}


def _pairs(num_layers: int) -> tuple[Stage, ...]:
    """All layers in pairs; the last one alone where their number is odd."""
    full = DepthPlan.full(num_layers).stages
    pairs = [Stage((layer, layer + 1)) for layer in range(0, num_layers - 1, 2)]
    return (*pairs, *full[2 * len(pairs) :])


def _pair_seconds(layer: float, single: Sequence[float], paired: Sequence[float], pairs: int) -> float:
    """A pair's cost, from all layers one after the other and in pairs in the same rounds.

    A difference that is not larger than its noise, the interquartile range over rounds, counts as none.
    """
    savings = [(alone - together) / pairs for alone, together in zip(single, paired, strict=True)]
    lower, _, upper = quantiles(savings, n=4)
    saving = median(savings)
    return 2 * layer if abs(saving) <= upper - lower else max(2 * layer - saving, layer)
