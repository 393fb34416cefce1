"""How far plans take a model from itself: perplexity, KL divergence and top-1 agreement on the same tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from transformers import DynamicCache, PreTrainedModel

from truedepth.models.adapters import require_no_virtual_tokens
from truedepth.models.rewire import apply, mark_decoding, restore
from truedepth.plan import DepthPlan
from truedepth.records.progress import Progress, silent

if TYPE_CHECKING:
    from truedepth.parallel.load import SplitModels

CONTEXT = 32
"""Tokens at the start of each window that are read but not scored: the prompt, for plans that decode only."""

LogProbabilities = Callable[[Tensor], Tensor]
"""Gives the log-probabilities of the scored tokens of windows: (B, T), int64, to (B * (T - CONTEXT - 1), V) float32."""

_BATCH = 2
"""Windows a forward. Small, since a batch's logits over the whole vocabulary are held twice."""


@dataclass(frozen=True)
class Quality:
    """Figures over all scored tokens.

    Attributes:
        perplexity: exp of the mean cross-entropy.
        kl: mean KL(base || plan) in nats a token; 0 for the unmodified model.
        agreement: share of tokens whose most likely next token is the unmodified model's.
        tokens: number of scored tokens.
    """

    perplexity: float
    kl: float
    agreement: float
    tokens: int


def compare_quality(
    model: PreTrainedModel,
    plans: Mapping[str, DepthPlan],
    windows: Tensor,
    progress: Progress = silent,
) -> dict[str, Quality]:
    """Judge plans against the unmodified model on the same text.

    The first `CONTEXT` tokens of each window are context. A plan with `prefill="full"` reads them with every layer
    and the rest through the plan, over the cache that this leaves, as it would in generation.

    Args:
        model: a causal language model without a plan, bare or wrapped by PEFT; it has none afterwards either.
        plans: by any name; the unmodified model must be among them to have its own figures.
        windows: token ids, (N, T) int64.

    Returns:
        A `Quality` for each name.

    Raises:
        UnsupportedModelError: an adapter of the model adds virtual tokens.
    """
    require_no_virtual_tokens(model)
    others = {name: None if plan.is_full else partial(_under, model, plan) for name, plan in plans.items()}
    base = partial(scored_log_probabilities, model, None)
    return judge(base, others, windows.to(model.device), progress)


def quality_on_ranks(models: SplitModels, windows: Tensor, progress: Progress = silent) -> dict[str, Quality]:
    """`compare_quality` of split models, of which the first is the unmodified one.

    Raises:
        RankError: another rank has stopped.
    """
    base = next(iter(models.models.values()))
    others = {
        name: None if models.plans[name].is_full else partial(scored_log_probabilities, model, models.plans[name])
        for name, model in models.models.items()
    }
    return judge(partial(scored_log_probabilities, base, None), others, windows.to(base.device), progress)


def judge(
    base: LogProbabilities,
    others: Mapping[str, LogProbabilities | None],
    windows: Tensor,
    progress: Progress = silent,
) -> dict[str, Quality]:
    """The same for anything that gives log-probabilities of the scored tokens of windows.

    Args:
        base: the unmodified model.
        others: what to judge, by name; None: the unmodified model.
    """
    sums = {name: torch.zeros(3, dtype=torch.float64) for name in others}
    batches = windows.split(_BATCH)
    with torch.inference_mode(), progress("Judging quality", len(batches) * (len(others) + 1)) as advance:
        for batch in batches:
            targets = batch[:, CONTEXT + 1 :].flatten()
            expected = base(batch)  # (tokens, V)
            advance()
            for name, other in others.items():
                sums[name] += _sums(expected, expected if other is None else other(batch), targets)
                advance()
    tokens = windows.shape[0] * (windows.shape[1] - CONTEXT - 1)
    return {name: _quality(total, tokens) for name, total in sums.items()}


def _quality(sums: Tensor, tokens: int) -> Quality:
    loss, kl, same = (sums / tokens).tolist()
    return Quality(math.exp(min(loss, 700.0)), max(kl, 0.0), same, tokens)


def _sums(base: Tensor, other: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, KL(base || other) and agreement, each summed over tokens. Log-probabilities (tokens, V)."""
    figures = (
        cross_entropy(other, targets, reduction="sum"),
        kl_div(other, base, reduction="sum", log_target=True),
        (base.argmax(-1) == other.argmax(-1)).sum(),
    )
    return torch.stack([figure.double().cpu() for figure in figures])


def _under(model: PreTrainedModel, plan: DepthPlan, ids: Tensor) -> Tensor:
    apply(model, plan)
    try:
        return scored_log_probabilities(model, plan, ids)
    finally:
        restore(model)


def scored_log_probabilities(model: PreTrainedModel, plan: DepthPlan | None, ids: Tensor) -> Tensor:
    """Of every scored token, given all before it in its window.

    Args:
        plan: what the model runs; None: no plan.
        ids: (B, T).

    Returns:
        (B * (T - CONTEXT - 1), V) float32.
    """
    if plan is not None and plan.prefill == "full":
        cache = DynamicCache(config=model.config)
        model(ids[:, :CONTEXT], past_key_values=cache, use_cache=True, logits_to_keep=1)
        mark_decoding(cache)
        logits = model(ids[:, CONTEXT:], past_key_values=cache, use_cache=True).logits[:, :-1]
    else:
        logits = model(ids, use_cache=False, logits_to_keep=ids.shape[1] - CONTEXT).logits[:, :-1]
    probabilities: Tensor = logits.float().log_softmax(-1)  # (B, T - CONTEXT - 1, V)
    return probabilities.flatten(0, 1)
