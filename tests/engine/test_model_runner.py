"""The primitive: a range of stages over given hidden states, wherever each sequence stands."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from truedepth.engine.runner.caches import KVCache
from truedepth.engine.runner.model_runner import ModelRunner
from truedepth.models.rewire import apply
from truedepth.plan import DepthPlan

CAPACITY = 40


def run(runner: ModelRunner, plan: DepthPlan, cache: KVCache, ids: Tensor, starts: list[int], cut: int = 0) -> Tensor:
    """Logits of `ids` (B, T), whose rows start at `starts`, by one run of the stages or by two."""
    context = runner.context(starts, ids.shape[1], cache.capacity)
    hidden = runner.embed(ids)
    for stages in (plan.stages[:cut], plan.stages[cut:]):
        hidden = runner.run(stages, plan.form, hidden, context, lambda layer: cache)
    return runner.logits(hidden)


@pytest.mark.parametrize("plan", [("0-5",), ("1-4",), ("5 0 (1|4) 3", "par")], ids=" ".join)
@torch.inference_mode()
def test_sequences_that_stand_apart_see_what_the_model_sees(
    family_name: str, plan: tuple[Any, ...], tiny_model: Any, token_ids: Any, plan_of: Any
) -> None:
    """A run of many tokens, then runs of unequal starts, some taken back and written anew; past the windows."""
    model, ids = tiny_model(family_name), token_ids(2, 24)
    expected = apply(model, plan_of(*plan))(ids, use_cache=False).logits
    runner, cache = ModelRunner(model), KVCache(2, CAPACITY)
    other = token_ids(2, 24, seed=9)
    run(runner, plan_of(*plan), cache, ids[:, :10], [0, 0])
    run(runner, plan_of(*plan), cache, other[:, 10:14], [10, 10])  # drafted, and all refused
    starts = [10, 7]  # of the second sequence three more are taken back
    for tokens in (3, 1, 5, 1, 1):
        run(runner, plan_of(*plan), cache, other[:, :tokens], starts)
        new = torch.stack([ids[row, start : start + tokens] for row, start in enumerate(starts)])
        logits = run(runner, plan_of(*plan), cache, new, starts, cut=2)
        for row, start in enumerate(starts):
            torch.testing.assert_close(logits[row], expected[row, start : start + tokens], atol=1e-4, rtol=1e-4)
        starts = [start + tokens for start in starts]


@torch.inference_mode()
def test_a_part_of_the_rows(tiny_model: Any, token_ids: Any, plan_of: Any) -> None:
    model, ids = tiny_model("gemma3"), token_ids(3, 12)
    runner, cache, plan = ModelRunner(model), KVCache(3, CAPACITY), plan_of("0-5")
    context = runner.context([0], 12, CAPACITY, first_row=1)
    hidden = runner.run(plan.stages, plan.form, runner.embed(ids[1:2]), context, lambda layer: cache)
    torch.testing.assert_close(runner.logits(hidden), model(ids[1:2]).logits, atol=1e-4, rtol=1e-4)
    keys, _ = cache.read(0, slice(0, 3), 12)
    assert keys[1].any() and not keys[0].any() and not keys[2].any()


@torch.inference_mode()
def test_long_runs_are_attended_to_in_another_way_with_the_same_result(tiny_model: Any, token_ids: Any) -> None:
    """Above 32 tokens a sequence, in a piece that is not the first."""
    for name in ("llama", "gemma2"):
        model, ids = tiny_model(name), token_ids(2, 80)
        runner, cache, plan = ModelRunner(model), KVCache(2, 80), DepthPlan.full(6)
        run(runner, plan, cache, ids[:, :40], [0, 0])
        logits = run(runner, plan, cache, ids[:, 40:], [40, 40])
        torch.testing.assert_close(logits, model(ids).logits[:, 40:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@torch.inference_mode()
def test_some_rows_of_the_head(name: str, tiny_model: Any) -> None:
    """Soft cap included."""
    runner = ModelRunner(tiny_model(name))
    ids = torch.tensor([63, 2, 17, 2])
    hidden = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0)) * 20
    torch.testing.assert_close(runner.logits(hidden, runner.head_rows(ids)), runner.logits(hidden)[..., ids])


class Windows:
    """What `context` tells of masks, for windows that the test chooses."""

    def __init__(self, tiny_model: Any) -> None:
        self.runner = ModelRunner(tiny_model("mistral"))
        self.runner._windows = [None, 3, 8, None, 3, 8]


@pytest.fixture(scope="module")
def windows(tiny_model: Any) -> Windows:
    return Windows(tiny_model)


@given(data=st.data())
def test_who_sees_whom(windows: Windows, data: Any) -> None:
    """Each token itself and those before it in its sequence, within the window; whether said by a mask or by none."""
    tokens = data.draw(st.integers(1, 6))
    starts = data.draw(st.one_of(st.just([0, 0]), st.lists(st.integers(0, 12), min_size=1, max_size=3)))
    stride = data.draw(st.sampled_from([None, 4, 64]))
    context = windows.runner.context(starts, tokens, CAPACITY, first_row=2, stride=stride)
    assert max(starts) + tokens <= context.span <= CAPACITY
    assert context.slots.tolist() == [
        (2 + row) * CAPACITY + start + at for row, start in enumerate(starts) for at in range(tokens)
    ]
    for window, mask in context.masks.items():
        for row, start in enumerate(starts):
            for at in range(tokens):
                wanted = [
                    entry <= start + at and (window is None or entry > start + at - window)
                    for entry in range(context.span)
                ]
                if mask is None:  # then one token sees all, or the first tokens see what stands before them
                    seen = [tokens == 1 or entry <= at for entry in range(context.span)]
                    assert tokens == 1 or context.span == tokens
                else:
                    own = mask[row if mask.shape[0] > 1 else 0, 0, at]
                    assert set(own.tolist()) <= {0.0, -torch.inf}
                    seen = (own == 0).tolist()
                assert seen == wanted
