"""Losses from shared hidden states equal those of the rewired model; influence equals its equations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from truedepth.errors import PlanError
from truedepth.evaluation.calibration import calibrate
from truedepth.evaluation.quality import CONTEXT
from truedepth.methods.base import Evidence
from truedepth.models.rewire import apply, restore
from truedepth.plan import DepthPlan

PLANS = [
    DepthPlan.full(6),
    DepthPlan.parse("0-2 4 5", 6),
    DepthPlan.parse("0-2 4", 6),
    DepthPlan.parse("1-5", 6),
    DepthPlan.parse("0 (1|2) 3-5", 6),
    DepthPlan.parse("0 (1|2) 3-5", 6, "par"),
    DepthPlan.parse("0 (1|2|3) 5", 6),
    DepthPlan.parse("0 2 1 3-5", 6),
]


def loss_when_applied(model: Any, plan: DepthPlan, windows: torch.Tensor, every: int) -> float:
    """Of the scored tokens, by the rewired model's own forward."""
    apply(model, plan)
    with torch.inference_mode():
        guesses = model(windows).logits.double().log_softmax(-1)
    restore(model)
    scored = range(CONTEXT, windows.shape[1] - 1, every)
    losses = [-guesses[row, at, windows[row, at + 1]] for row in range(len(windows)) for at in scored]
    return torch.stack(losses).mean().item()


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "qwen3_moe"])
@pytest.mark.parametrize(("length", "every"), [(CONTEXT + 16, 1), (CONTEXT + 16, 2), (CONTEXT + 17, 2)])
def test_losses_equal_those_of_the_applied_plan(
    family: str, length: int, every: int, tiny_model: Callable[..., Any], token_ids: Callable[..., Any]
) -> None:
    model, windows = tiny_model(family), token_ids(3, length)
    losses = calibrate(model, windows, every=every).losses(PLANS)
    assert losses == pytest.approx([loss_when_applied(model, plan, windows, every) for plan in PLANS], rel=1e-4)


def test_a_loss_does_not_depend_on_the_plans_judged_with_it(
    tiny_model: Callable[..., Any], token_ids: Callable[..., Any]
) -> None:
    """Bit for bit: an interrupted search must go on with the same figures."""
    model, windows = tiny_model("llama"), token_ids(2, CONTEXT + 16)
    together = calibrate(model, windows).losses(PLANS)
    alone = [calibrate(model, windows).losses([plan])[0] for plan in PLANS]
    assert together == alone


def test_block_influence_and_angular_distance_follow_their_equations(
    tiny_model: Callable[..., Any], token_ids: Callable[..., Any]
) -> None:
    model, windows = tiny_model("qwen3"), token_ids(2, CONTEXT + 8)
    evidence: Evidence = calibrate(model, windows)
    with torch.inference_mode():
        states = list(model(windows, output_hidden_states=True).hidden_states[:-1])

    def cosine(first: int, second: int) -> torch.Tensor:
        one, two = states[first].double(), states[second].double()
        return (one * two).sum(-1) / (one.norm(dim=-1) * two.norm(dim=-1))

    influence = evidence.block_influence()
    assert len(influence) == 6
    assert influence[:5] == pytest.approx([(1 - cosine(at, at + 1)).mean().item() for at in range(5)], abs=1e-5)
    distance = evidence.angular_distance(2)
    expected = [(cosine(at, at + 2).arccos() / math.pi).mean().item() for at in range(4)]
    assert len(distance) == 5
    assert distance[:4] == pytest.approx(expected, abs=1e-4)


def test_known_losses_are_not_computed_again_and_new_ones_are_added(
    tiny_model: Callable[..., Any], token_ids: Callable[..., Any]
) -> None:
    evidence = calibrate(tiny_model("llama"), token_ids(1, CONTEXT + 8))
    evidence.known = {"1-5": 42.0}
    losses = evidence.losses([DepthPlan.parse("1-5", 6), DepthPlan.parse("0-4", 6)])
    assert losses == [42.0, evidence.known["0-4"]]
    assert list(evidence.known) == ["1-5", "0-4"]


def test_plans_whose_weights_or_phases_differ_are_refused(
    tiny_model: Callable[..., Any], token_ids: Callable[..., Any]
) -> None:
    evidence = calibrate(tiny_model("llama"), token_ids(1, CONTEXT + 8))
    for plan in (DepthPlan.parse("0 (1+2) 3-5", 6), DepthPlan.of_layers([0, 5], 6, prefill="full")):
        with pytest.raises(PlanError, match="calibration judges"):
            evidence.losses([plan])
