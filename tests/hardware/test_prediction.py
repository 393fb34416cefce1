"""Predictions: times by hand for a tiny model, both phases, ranges, and plans that leave the prompt alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from truedepth.hardware.formula import pass_parts
from truedepth.hardware.prediction import UNMODIFIED, predict
from truedepth.hardware.profile import Hardware, HardwareProfile, load_hardware
from truedepth.measuring.work import DecodeWork, PrefillWork
from truedepth.plan import DepthPlan

FULL = DepthPlan.full(6)
PAIRED = DepthPlan.parse("0 (1|2) (3|4) 5", 6)

# The tiny llama of two bytes a value: D = 32, FFN 48, 2 heads for keys and values of 8 numbers, 64 tokens.
MATRICES = 32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 48 * 32
LAYER = 2 * (MATRICES + 2 * 32)


@pytest.fixture
def hardware(fields: dict[str, Any]) -> Hardware:
    del fields["stacks"]["fast"]
    return Hardware("by-hand", HardwareProfile.model_validate(fields), 2, "plain")


def test_decode_by_hand(tiny_model: Callable[..., Any], hardware: Hardware) -> None:
    found = predict(tiny_model("llama"), hardware, {"paired": PAIRED}, batch=2, context=10, prompt_tokens=4)
    layer = max((LAYER + 2 * 10 * 2 * 2 * 2 * 8) / 100, 2 * (2 * MATRICES + 4 * 10 * 32) / 1000) / 2
    reduce = 2 + (2 * 2 * 32) / 20
    outside = (2 * (64 * 32 + 32) + 2 * 2 * 32) / 100 / 2 + 2 * 0.25 + reduce
    outside += (2 + (2 * 2 * 64) / 20) / 2  # gathering the logits
    full = outside + 6 * (layer + 1 + 2 * reduce)
    paired = outside + 6 * layer + 4 * (1 + 2 * reduce)
    assert found.plans[UNMODIFIED].decode.seconds.value == pytest.approx(full)
    step = found.plans["paired"].decode
    assert step.seconds.value == pytest.approx(paired)
    assert step.tokens_per_second.value == pytest.approx(2 / paired)
    assert step.speedup.value == pytest.approx(full / paired)
    assert (step.all_reduces, found.plans[UNMODIFIED].decode.all_reduces) == (9, 13)


def test_prefill_is_a_pass_of_the_prompt(tiny_model: Callable[..., Any], hardware: Hardware) -> None:
    model = tiny_model("llama")
    found = predict(model, hardware, {"paired": PAIRED}, batch=3, prompt_tokens=40)
    work = PrefillWork.of(model, prompt_tokens=40, batch=3, bytes_per_value=2)
    seconds = pass_parts(work, PAIRED, hardware.machine).seconds
    assert found.plans["paired"].prefill.seconds.value == pytest.approx(seconds)
    assert found.plans["paired"].prefill.tokens_per_second.value == pytest.approx(120 / seconds)
    assert found.plans["paired"].prefill.parts.computing > 0
    assert found.context == 40  # of the decode step, where none is given


def test_a_plan_that_only_decodes_has_the_prompt_of_the_full_model(
    tiny_model: Callable[..., Any], hardware: Hardware
) -> None:
    plan = DepthPlan.of_layers((0, 2, 5), 6, prefill="full")
    found = predict(tiny_model("llama"), hardware, {"half": plan})
    assert found.plans["half"].prefill == found.plans[UNMODIFIED].prefill
    assert found.plans["half"].prefill.speedup.value == 1
    assert found.plans["half"].decode.speedup.value > 1


@pytest.mark.parametrize("name", ["a100-nvlink-x2", "rtx-4090-x2:eager", "epyc-9654"])
@pytest.mark.parametrize("form", ["lp", "par"])
def test_ranges_enclose(name: str, form: Any, tiny_model: Callable[..., Any]) -> None:
    found = predict(tiny_model("llama"), load_hardware(name), {"paired": PAIRED.with_form(form)})
    for own in found.plans.values():
        for one in (own.prefill, own.decode):
            for estimate in (one.seconds, one.tokens_per_second, one.speedup):
                assert estimate.low <= estimate.value <= estimate.high
            assert one.seconds.low < one.seconds.high
            assert one.parts.seconds == pytest.approx(one.seconds.value)
    unmodified = found.plans[UNMODIFIED].decode.speedup
    assert (unmodified.low, unmodified.high) == (1, 1)


def test_certain_figures_leave_no_range(tiny_model: Callable[..., Any], hardware: Hardware) -> None:
    seconds = predict(tiny_model("llama"), hardware, {}).plans[UNMODIFIED].decode.seconds
    assert seconds.low == seconds.value == seconds.high


def test_counted_at_the_width_of_the_profile(tiny_model: Callable[..., Any], hardware: Hardware) -> None:
    model = tiny_model("llama")
    work = DecodeWork.of(model, context=64, bytes_per_value=2)
    found = predict(model, hardware, {}).plans[UNMODIFIED].decode.seconds.value
    assert found == pytest.approx(pass_parts(work, FULL, hardware.machine).seconds)
