"""Parts of a decode step: which parts there are, and how they add up. The clock ticks once a reading."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from truedepth.errors import UsageError
from truedepth.measuring import stage_times as module
from truedepth.measuring.stage_times import StageTimes, stage_times
from truedepth.models.rewire import applied_plan
from truedepth.plan import DepthPlan


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(module, "now", lambda device: float(next(ticks)))


@pytest.mark.parametrize(
    "plan",
    [
        DepthPlan.full(6),
        DepthPlan.parse("0-2 5", 6),
        DepthPlan.parse("0 (1|2) (3|4|5)", 6),
        DepthPlan.parse("0 (1|2) (3|4) 5", 6, form="par"),
        DepthPlan.parse("0 (1|2) 5", 6, prefill="full"),
        DepthPlan.parse("3 0 (5|1) 2 4", 6),
        DepthPlan.parse("0 (1+2) 3-5", 6),
    ],
    ids=str,
)
@pytest.mark.usefixtures("ticking")
def test_one_time_for_each_stage(tiny_model: Callable[..., Any], plan: DepthPlan) -> None:
    times = stage_times(tiny_model("llama"), plan, prompt_tokens=5, repeats=3)
    depth = plan.effective_depth
    assert times.notation == tuple(str(stage) for stage in plan.stages)
    # A reading before and after each stage, the norm and the head, and around the step.
    assert times.stages == (1.0,) * depth
    assert (times.final_norm, times.head) == (1.0, 1.0)
    assert times.step == 2 * (depth + 2) + 1
    assert times.rest == times.step - depth - 2


@pytest.mark.usefixtures("ticking")
def test_every_family(tiny_model: Callable[..., Any], family_name: str) -> None:
    plan = DepthPlan.parse("0 (1|2) 3 5", 6)
    assert stage_times(tiny_model(family_name), plan, repeats=1, batch=2).stages == (1.0,) * 4


def test_medians_of_the_steps() -> None:
    steps = [
        StageTimes(("0", "1"), (first, 2.0), final_norm=0.5, head=3.0, rest=rest, step=9.0)
        for first, rest in [(1.0, 4.0), (5.0, 1.0), (2.0, 2.0)]
    ]
    assert module._medians(steps) == StageTimes(("0", "1"), (2.0, 2.0), 0.5, 3.0, 2.0, 9.0)


def test_no_trace_is_left_on_the_model(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")
    stage_times(model, DepthPlan.parse("0 (1|2) 5", 6), repeats=1)
    assert applied_plan(model) is None
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_peft_model(tiny_model: Callable[..., Any]) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(task_type="CAUSAL_LM", r=2))
    assert len(stage_times(model, DepthPlan.parse("0 (1|2) 5", 6), repeats=1).stages) == 3


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"batch": 0}, {"prompt_tokens": 0}])
def test_wrong_numbers(tiny_model: Callable[..., Any], wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        stage_times(tiny_model("llama"), DepthPlan.full(6), **wrong)
