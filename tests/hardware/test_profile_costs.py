"""What the search asks a hardware profile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from truedepth.hardware.profile import Hardware, HardwareProfile, shipped_profiles
from truedepth.hardware.profile_costs import ProfileCosts
from truedepth.measuring.costs import CostModel
from truedepth.measuring.work import DecodeWork, LayerWork
from truedepth.plan import DepthPlan

LAYER = LayerWork(weight_bytes=500, cache_bytes=100, flops=2000)
WORK = DecodeWork(
    (LAYER,) * 6, outside_bytes=400, outside_flops=10, hidden_bytes=10, logits_bytes=8, batch=1, context=8
)
FIXED = 400 / 100 / 2 + 2 * 0.25 + 2.5 + (2 + 8 / 20) / 2
SINGLE = 6 / 2 + 4 * 0.25 + 2 * 2.5


@pytest.fixture
def costs(fields: dict[str, Any]) -> ProfileCosts:
    profile = HardwareProfile.model_validate({**fields, "stacks": {"plain": fields["stacks"]["plain"]}})
    return ProfileCosts(Hardware("by-hand", profile, 2, "plain"), WORK)


def test_seconds_and_speedups(costs: ProfileCosts) -> None:
    model: CostModel = costs
    plan = DepthPlan.parse("(0|1) 2-5", 6)
    assert model.decode_seconds(plan) == pytest.approx(FIXED + 12 + 4 * SINGLE)
    assert model.speedup(plan) == pytest.approx((FIXED + 6 * SINGLE) / (FIXED + 12 + 4 * SINGLE))


def test_worth(costs: ProfileCosts) -> None:
    assert costs.worth("lp") and costs.worth("par")
    alone = replace(costs, hardware=replace(costs.hardware, devices=1))
    assert alone.worth("lp")  # launches are saved
    assert not alone.worth("par")


def test_record(costs: ProfileCosts) -> None:
    record = costs.record()
    assert record.source == "by-hand"
    assert record.fixed_seconds == pytest.approx(FIXED)
    assert record.layer_seconds == pytest.approx(SINGLE)
    assert record.pair_seconds == pytest.approx({"lp": 12.0, "par": 9.5})
    assert "lp 67%, par 53%" in record.note


def test_a_model_of_one_layer_has_no_pairs(costs: ProfileCosts) -> None:
    single = replace(costs, work=replace(WORK, layers=(LAYER,)))
    assert single.record().pair_seconds == {}
    assert not single.worth("lp")


def test_costs_of_a_model(tiny_model: Callable[..., Any], fields: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    del fields["stacks"]["fast"]
    file.write_text(yaml.safe_dump(fields))
    model = tiny_model("llama")
    found = ProfileCosts.of(model, str(file), context=10, batch=2)
    assert found.work == DecodeWork.of(model, context=10, batch=2, bytes_per_value=2)
    assert found.hardware.name == str(file)


@pytest.mark.parametrize("name", shipped_profiles())
def test_two_of_every_shipped_device_prefer_pairs(name: str, tiny_model: Callable[..., Any]) -> None:
    found = ProfileCosts.of(tiny_model("llama"), f"{name}-x2", context=10)
    assert found.worth("lp") and found.worth("par")
