"""Interleaved timing: what runs, in which order, and the arithmetic. No test looks at real times."""

from __future__ import annotations

import gc
import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from truedepth.errors import UsageError
from truedepth.measuring import speed
from truedepth.measuring.speed import Comparison, Speed, TimedRun, compare, fixed_prompt
from truedepth.measuring.timer import Spread
from truedepth.models.rewire import applied_plan, apply
from truedepth.plan import DepthPlan

FULL = DepthPlan.full(6)
SKIP = DepthPlan.parse("0-2 5", 6)
PAIR = DepthPlan.parse("0 (1|2) 3-5", 6)


@pytest.fixture
def layer_calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[int]]:
    """`layer_calls(model)`: a list that grows by the tokens of each call of a decoder layer."""

    def watch(model: Any) -> list[int]:
        calls: list[int] = []
        for layer in model.model.layers:
            layer.register_forward_hook(lambda _, args, __: calls.append(args[0].shape[1]))
        return calls

    return watch


def test_spread_is_median_and_extremes() -> None:
    assert Spread.of([5.0, 1.0, 2.0]) == Spread(2.0, 1.0, 5.0)


def test_arithmetic_of_a_comparison() -> None:
    comparison = Comparison(
        {
            "full": (TimedRun(0.5, (0.05, 0.15)), TimedRun(1.0, (0.20, 0.20)), TimedRun(2.0, (0.70, 0.10))),
            "plan": (TimedRun(0.25, (0.05, 0.05)), TimedRun(0.5, (0.30, 0.10)), TimedRun(1.0, (0.10, 0.10))),
        },
        prompt_tokens=8,
        new_tokens=4,
        batch=2,
    )
    assert comparison.baseline == "full"
    full = comparison.speeds["full"]
    assert full.decode_tokens_per_second == Spread(10.0, 5.0, 20.0)
    assert full.prefill_tokens_per_second == Spread(16.0, 8.0, 32.0)
    assert full.time_to_first_token_seconds == Spread(1.0, 0.5, 2.0)
    assert comparison.ratios["plan"] == Spread(2.0, 1.0, pytest.approx(4.0))  # round by round 2, 1, 4
    assert comparison.ratios["full"] == Spread(1.0, 1.0, 1.0)
    assert comparison.saved_seconds("plan") == pytest.approx([0.05, 0.0, 0.30])  # by the median steps


def test_ratios_pair_the_runs_of_a_round() -> None:
    # The machine grows slower all the time; medians over the rounds would have a ratio of 2.
    drifting = Comparison(
        {
            "full": tuple(TimedRun(1.0, (seconds,)) for seconds in (1.0, 2.0, 8.0)),
            "plan": tuple(TimedRun(1.0, (seconds,)) for seconds in (0.25, 1.0, 1.0)),
        },
        prompt_tokens=1,
        new_tokens=1,
        batch=1,
    )
    assert drifting.ratios["plan"] == Spread(4.0, 2.0, 8.0)


def test_comparison_as_json() -> None:
    comparison = Comparison({"full": (TimedRun(1.0, (0.5,)),) * 3}, prompt_tokens=4, new_tokens=2, batch=1)
    data = json.loads(json.dumps(comparison.to_dict()))
    assert data["repeats"] == 3
    assert data["plans"]["full"]["decode_tokens_per_second"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert data["plans"]["full"]["ratio"]["median"] == 1.0


def test_speed_record_has_the_share_of_the_memory_limit() -> None:
    rate, prefill, first = Spread(20.0, 10.0, 30.0), Spread(100.0, 90.0, 110.0), Spread(0.1, 0.1, 0.2)
    record = Speed(rate, prefill, first).to_record(bytes_per_token=1_000, bandwidth=40_000.0)
    assert record.bandwidth_share == 0.5
    assert record.decode_tokens_per_second == 20.0
    assert record.time_to_first_token_seconds == 0.1


def test_plans_take_turns_and_the_first_round_does_not_count(
    tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    names = {FULL: "a", SKIP: "b", PAIR: "c"}
    run_plan = speed.run_plan

    def recorded(model: Any, plan: DepthPlan | None) -> None:
        if plan is not None:  # the model is put back at the end
            order.append(names[plan])
        run_plan(model, plan)

    monkeypatch.setattr(speed, "run_plan", recorded)
    plans = {"a": FULL, "b": SKIP, "c": PAIR}
    comparison = compare(tiny_model("llama"), plans, prompt_tokens=3, new_tokens=1, repeats=4)
    assert "".join(order[3:]) == "abc" + "cba" + "abc" + "cba"
    assert sorted(order[:3]) == ["a", "b", "c"]
    assert {name: len(runs) for name, runs in comparison.runs.items()} == {"a": 4, "b": 4, "c": 4}
    assert comparison.baseline == "a"


def test_each_run_prefills_and_decodes_what_was_asked(
    tiny_model: Callable[..., Any], layer_calls: Callable[[Any], list[int]]
) -> None:
    model = tiny_model("llama")
    calls = layer_calls(model)
    compare(model, {"skip": SKIP}, prompt_tokens=7, new_tokens=3, repeats=3)
    one_run = [7] * 4 + [1] * 4 * 3
    assert calls == one_run * 4


def test_full_prefill_decodes_by_the_plan(
    tiny_model: Callable[..., Any], layer_calls: Callable[[Any], list[int]]
) -> None:
    model = tiny_model("llama")
    calls = layer_calls(model)
    plan = DepthPlan.parse("0-2 5", 6, prefill="full")
    compare(model, {"skip": plan}, prompt_tokens=7, new_tokens=1, repeats=3)
    assert calls == ([7] * 6 + [1] * 4) * 4


def test_times_come_from_the_clock(tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    readings = itertools.cycle([0.0, 2.0, 3.0, 5.0, 11.0])
    monkeypatch.setattr(speed, "now", lambda device: next(readings))
    comparison = compare(tiny_model("llama"), {"full": FULL}, prompt_tokens=4, new_tokens=3, repeats=3)
    run = TimedRun(prefill_seconds=2.0, steps=(1.0, 2.0, 6.0))
    assert comparison.runs["full"] == (run,) * 3
    assert (run.step_seconds, run.median_step_seconds) == (3.0, 2.0)


@pytest.mark.parametrize("batch", [1, 3])
def test_runs_on_every_family(tiny_model: Callable[..., Any], family_name: str, batch: int) -> None:
    plans = {"full": FULL, "plan": SKIP}
    comparison = compare(tiny_model(family_name), plans, prompt_tokens=10, new_tokens=2, batch=batch, repeats=3)
    assert all(run.step_seconds > 0 for runs in comparison.runs.values() for run in runs)


def test_runs_on_a_peft_model(tiny_model: Callable[..., Any]) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(task_type="CAUSAL_LM", r=2))
    comparison = compare(model, {"full": FULL, "plan": PAIR}, prompt_tokens=3, new_tokens=1, repeats=3)
    assert set(comparison.runs) == {"full", "plan"}


def test_the_model_is_left_as_it_was(tiny_model: Callable[..., Any]) -> None:
    model = apply(tiny_model("llama"), SKIP).train()
    compare(model, {"full": FULL, "pair": PAIR}, prompt_tokens=3, new_tokens=1, repeats=3)
    assert applied_plan(model) == SKIP
    assert model.training
    assert gc.isenabled()
    assert torch.is_grad_enabled()


def test_the_model_is_left_as_it_was_after_an_error(
    tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    model = tiny_model("llama")
    monkeypatch.setattr(speed, "timed_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(model, {"pair": PAIR}, prompt_tokens=3, new_tokens=1)
    assert applied_plan(model) is None
    assert gc.isenabled()


def test_no_garbage_collection_while_timing(tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    collecting: list[bool] = []
    monkeypatch.setattr(speed, "now", lambda device: collecting.append(gc.isenabled()) or len(collecting))
    compare(tiny_model("llama"), {"full": FULL}, prompt_tokens=3, new_tokens=1, repeats=3)
    assert collecting and not any(collecting)


def test_time_limit_still_gives_three_rounds(tiny_model: Callable[..., Any]) -> None:
    comparison = compare(
        tiny_model("llama"), {"full": FULL}, prompt_tokens=3, new_tokens=1, repeats=50, max_seconds=0.0
    )
    assert len(comparison.runs["full"]) == 3


def test_prompt_is_fixed_and_valid(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")
    prompt = fixed_prompt(model, 2, 40)
    assert prompt.shape == (2, 40)
    assert prompt.min() >= 0 and prompt.max() < 64
    assert torch.equal(prompt, fixed_prompt(model, 2, 40))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"repeats": 2}, "repeats is 2"),
        ({"prompt_tokens": 0}, "prompt tokens is 0"),
        ({"new_tokens": 0}, "new tokens is 0"),
        ({"batch": -1}, "batch is -1"),
        ({"prompt_tokens": 100, "new_tokens": 29}, "more than the model's context of 128"),
    ],
)
def test_wrong_numbers(tiny_model: Callable[..., Any], wrong: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compare(tiny_model("llama"), {"full": FULL}, **wrong)


def test_no_plans(tiny_model: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match="no plan"):
        compare(tiny_model("llama"), {})
