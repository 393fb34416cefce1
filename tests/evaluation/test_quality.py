"""Perplexity, KL and agreement equal what their definitions give, computed here the slow way."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from truedepth.evaluation.quality import CONTEXT, compare_quality
from truedepth.models.rewire import apply, restore
from truedepth.plan import DepthPlan

LENGTH = CONTEXT + 20


def by_definition(model: Any, plan: DepthPlan, windows: torch.Tensor) -> tuple[float, float, float]:
    """Token by token, with the unmodified model and then the plan reading each prefix anew."""
    losses, divergences, same = [], [], []
    with torch.inference_mode():
        for window in windows:
            base = model(window[None]).logits[0].double().log_softmax(-1)
            apply(model, plan)
            other = model(window[None]).logits[0].double().log_softmax(-1)
            restore(model)
            for at in range(CONTEXT, LENGTH - 1):
                losses.append(-other[at, window[at + 1]].item())
                divergences.append((base[at].exp() * (base[at] - other[at])).sum().item())
                same.append(base[at].argmax() == other[at].argmax())
    return math.exp(sum(losses) / len(losses)), sum(divergences) / len(divergences), sum(same) / len(same)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_figures_equal_their_definitions(
    family: str, tiny_model: Callable[..., Any], token_ids: Callable[..., Any]
) -> None:
    model, windows = tiny_model(family), token_ids(3, LENGTH)
    plan = DepthPlan.parse("0 (1|2) 3 5", 6)
    quality = compare_quality(model, {"full": DepthPlan.full(6), "plan": plan}, windows)
    perplexity, kl, agreement = by_definition(model, plan, windows)
    assert quality["plan"].perplexity == pytest.approx(perplexity, rel=1e-4)
    assert quality["plan"].kl == pytest.approx(kl, rel=1e-3)
    assert quality["plan"].agreement == pytest.approx(agreement)
    assert quality["plan"].tokens == 3 * (LENGTH - CONTEXT - 1)
    assert quality["full"].perplexity == pytest.approx(by_definition(model, DepthPlan.full(6), windows)[0], rel=1e-4)
    assert (quality["full"].kl, quality["full"].agreement) == (0, 1)


def test_a_plan_that_only_decodes_reads_the_context_with_every_layer(
    tiny_model: Callable[..., Any], token_ids: Callable[..., Any]
) -> None:
    """The reference decodes the window token by token after a full prefill, as generation would."""
    model, windows = tiny_model("llama"), token_ids(2, LENGTH)
    plan = DepthPlan.of_layers([0, 2, 5], 6, prefill="full")
    quality = compare_quality(model, {"plan": plan}, windows)["plan"]
    losses = []
    apply(model, plan)
    with torch.inference_mode():
        for window in windows:
            cache = model(window[None, :CONTEXT], use_cache=True).past_key_values
            for at in range(CONTEXT, LENGTH - 1):
                logits = model(window[None, at : at + 1], past_key_values=cache, use_cache=True).logits
                losses.append(-logits[0, -1].double().log_softmax(-1)[window[at + 1]].item())
    restore(model)
    assert quality.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
