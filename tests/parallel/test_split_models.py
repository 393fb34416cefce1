"""A model cut over ranks computes what it computes in one piece, with as many all-reduces as the formula says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from truedepth import DepthPlan, Engine, Sampling, apply
from truedepth.decoding.request import Request
from truedepth.errors import PlanError, UnsupportedModelError
from truedepth.evaluation.quality import compare_quality
from truedepth.families import all_families
from truedepth.parallel.load import split_model
from truedepth.parallel.partition import pieces_of, require_divisible
from truedepth.plan import Stage

SPLIT = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
PLANS = ("0-5", "(0|1) 2 (3|4) 5", "1 (2|4) 5", "0 (1+2) (3|5) 4")
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def part_of(tiny_model: Callable[..., Any]) -> Callable[..., Any]:
    """`part_of(whole, plan, ranks)`: a rank's part of a model."""

    def make(whole: Any, plan: DepthPlan, ranks: Any) -> Any:
        return split_model(whole.config, plan, dict(whole.named_parameters()).__getitem__, ranks)

    return make


def expected_logits(whole: Any, plan: DepthPlan, ids: torch.Tensor, forced: int) -> list[torch.Tensor]:
    """Of a prompt, and of forced single tokens after it."""
    with torch.no_grad():
        output = whole(ids[:, :-forced], use_cache=True)
        found = [output.logits]
        for at in range(ids.shape[1] - forced, ids.shape[1]):
            output = whole(ids[:, at : at + 1], past_key_values=output.past_key_values, use_cache=True)
            found.append(output.logits)
    return found


@pytest.mark.parametrize("form", ["lp", "par"])
@pytest.mark.parametrize("notation", PLANS)
@pytest.mark.parametrize("name", SPLIT)
def test_two_ranks_give_the_logits_of_one_process(
    name: str,
    notation: str,
    form: Any,
    tiny_model: Callable[..., Any],
    token_ids: Callable[..., torch.Tensor],
    on_threads: Callable[..., list[Any]],
    part_of: Callable[..., Any],
) -> None:
    """By calls of the model: prompt, then single tokens over its cache, which no two ranks fill alike."""
    plan, ids = DepthPlan.parse(notation, 6, form), token_ids(2, 20)
    whole = tiny_model(name)

    def job(ranks: Any) -> tuple[list[torch.Tensor], Any]:
        return expected_logits(part_of(whole, plan, ranks), plan, ids, 3), ranks.traffic

    (first, traffic), (second, _) = on_threads(2, job)
    assert (traffic.all_reduces, traffic.all_gathers) == (4 * plan.all_reduces, 4)
    for own, other, expected in zip(first, second, expected_logits(apply(whole, plan), plan, ids, 3), strict=True):
        torch.testing.assert_close(own, expected, **TOLERANCE)
        torch.testing.assert_close(own, other, rtol=0, atol=0)
