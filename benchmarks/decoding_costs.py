"""`decoding.py --ablation` and `--verify-cost`: what each part of self-speculation brings, and what verifying costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from decoding_compare import compare
from decoding_entrants import DraftConfig, Truedepth
from decoding_subjects import Subject

from truedepth.engine.drafts.adaptive import AdaptivePolicy
from truedepth.engine.drafts.drafts import Draft
from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary
from truedepth.engine.drafts.policy import FixedPolicy
from truedepth.engine.runner.caches import KVCache
from truedepth.measuring.timer import Spread
from truedepth.records.progress import Progress

VERIFIED = (1, 2, 3, 5, 9)
"""Tokens in a pass, whose costs are compared."""

CONTEXT = 160
"""Cache entries that a timed pass finds."""


def ablation(
    tested: Subject, vocabulary: DraftVocabulary, length: int, settings: Mapping[str, int], progress: Progress
) -> dict[str, Any]:
    """The same draft with each part of sharing on and off.

    Args:
        vocabulary: the draft vocabulary that is turned on and off.
        length: tokens drafted a round where the length does not adapt.
        settings: of `compare`.
    """
    compared = compare(_variants(tested, vocabulary, length), tested.prompts, **settings, progress=progress)
    found = compared.to_dict(tested.model)
    return {"exit": tested.exit, "length": length, "vocabulary": len(vocabulary.ids), **found}


def _variants(tested: Subject, vocabulary: DraftVocabulary, length: int) -> list[DraftConfig]:
    """Plain decoding, nothing on, each part alone, and all together."""
    plan = tested.exit_plan
    parts = ("shared cache and states", "draft vocabulary", "adaptive length")
    chosen = [(), *((part,) for part in parts), parts]
    variants: list[DraftConfig] = [Truedepth("plain", tested.engine)]
    for on in chosen:
        draft = tested.engine.draft(plan, vocabulary=vocabulary if parts[1] in on else None)
        if parts[0] not in on:
            draft = _apart(draft)
        policy = partial(AdaptivePolicy, 1) if parts[2] in on else partial(FixedPolicy, length)
        name = "all three" if len(on) == len(parts) else on[0] if on else "none of the three"
        variants.append(Truedepth(name, tested.engine, (draft,), policy))
    return variants


def _apart(draft: Draft) -> Draft:
    """The same draft with all of its states and cache entries apart from the target's."""
    alone = draft.shared + draft.alone
    kept = frozenset(layer for stage in alone for layer in stage.layers)
    return replace(draft, shared=(), alone=alone, rest=draft.shared + draft.rest, kept=kept)


def verify_cost(tested: Subject, batches: Sequence[int], rounds: int, progress: Progress) -> dict[str, Any]:
    """Seconds of a target pass over several tokens of each sequence, and their ratio to one token's."""
    rows = []
    for batch in batches:
        probes = {tokens: _pass(tested, batch, tokens) for tokens in VERIFIED}
        times = _interleaved(probes, rounds, progress, f"target passes, batch {batch}")
        for tokens in VERIFIED:
            ratios = [own / one for own, one in zip(times[tokens], times[1], strict=True)]
            rows.append(
                {
                    "batch": batch,
                    "tokens": tokens,
                    "seconds": asdict(Spread.of(times[tokens])),
                    "ratio_to_one_token": asdict(Spread.of(ratios)),
                    "ratio_of_medians": median(times[tokens]) / median(times[1]),
                }
            )
    return {"context": CONTEXT, "rounds": rounds, "rows": rows}


def _pass(tested: Subject, batch: int, tokens: int) -> Callable[[], object]:
    """A pass of the target over `tokens` new tokens of each of `batch` sequences, logits included."""
    runner, target = tested.engine.runner, tested.engine.target
    cache = KVCache(batch, CONTEXT + tokens)
    ids = torch.full((batch, tokens), 5, device=runner.device)

    @torch.inference_mode()
    def run() -> torch.Tensor:
        context = runner.context([CONTEXT] * batch, tokens, cache.capacity)
        return runner.logits(runner.run(target.stages, target.form, runner.embed(ids), context, lambda _: cache))

    return run


def _interleaved(
    probes: Mapping[int, Callable[[], object]], rounds: int, progress: Progress, label: str
) -> dict[int, list[float]]:
    times: dict[int, list[float]] = {tokens: [] for tokens in probes}
    with progress(label, rounds + 1) as advance:
        for turn in range(rounds + 1):
            for tokens, probe in probes.items():
                begun = time.perf_counter()
                probe()
                if turn:  # the first round warms up
                    times[tokens].append(time.perf_counter() - begun)
            advance()
    return times
