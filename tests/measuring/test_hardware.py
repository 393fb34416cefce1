"""Hardware profiles: the formula against numbers by hand, and what is said about wrong files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from truedepth.errors import UsageError
from truedepth.measuring.costs import CostModel
from truedepth.measuring.hardware import HardwareProfile, ProfileCosts, load_profile, shipped_profiles
from truedepth.measuring.work import DecodeWork, LayerWork
from truedepth.plan import DepthPlan, Form

FIGURES = {
    "memory_bytes_per_second": 100.0,
    "flops_per_second": 1000.0,
    "launches_per_layer": 4,
    "kernel_launch_seconds": 0.25,
    "all_reduce_latency_seconds": 2.0,
    "link_bytes_per_second": 20.0,
}
FIELDS: dict[str, Any] = {
    "description": "a machine for sums in the head",
    "devices": 2,
    "bytes_per_value": 2,
    **FIGURES,
    "sources": dict.fromkeys(FIGURES, "made up"),
}

# A layer: 600 bytes in 6 s on one device, 3 s on two; 2000 flops in 2 s: reading takes longer.
LAYER = LayerWork(weight_bytes=500, cache_bytes=100, flops=2000)
WORK = DecodeWork((LAYER,) * 6, outside_bytes=400, outside_flops=10, hidden_bytes=10, batch=1, context=8)

FIXED = 400 / 100 / 2 + 2.5  # the head's share, and the embedding's all-reduce: 2 + 10/20
SINGLE = 6 / 2 + 4 * 0.25 + 2 * 2.5


def costs(work: DecodeWork = WORK, **changes: Any) -> ProfileCosts:
    return ProfileCosts("by-hand", HardwareProfile.model_validate({**FIELDS, **changes}), work)


def one_device() -> ProfileCosts:
    absent = ("all_reduce_latency_seconds", "link_bytes_per_second")
    sources = {name: "made up" for name in FIGURES if name not in absent}
    return costs(devices=1, sources=sources, **dict.fromkeys(absent))


@pytest.mark.parametrize(
    ("notation", "form", "stages"),
    [
        ("0-5", "lp", 6 * SINGLE),
        ("0 5", "lp", 2 * SINGLE),
        ("(0+1)", "lp", SINGLE),
        # One wide layer: twice the bytes, the launches and all-reduces of one layer.
        ("(0|1)", "lp", 6 + 1 + 5),
        ("(0|1|2)", "lp", 9 + 1 + 5),
        # A whole layer on each device: the bytes of one layer at the rate of one device, one all-reduce.
        ("(0|1)", "par", 6 + 1 + 2.5),
        # Three layers on two devices: one of them runs two.
        ("(0|1|2)", "par", 12 + 2 + 2.5),
    ],
)
def test_formula_by_hand(notation: str, form: Form, stages: float) -> None:
    model: CostModel = costs()
    plan = DepthPlan.parse(notation, 6, form)
    assert model.decode_seconds(plan) == pytest.approx(FIXED + stages)
    assert model.speedup(plan) == pytest.approx((FIXED + 6 * SINGLE) / (FIXED + stages))


def test_arithmetic_bounds_where_it_takes_longer() -> None:
    busy = LayerWork(weight_bytes=500, cache_bytes=100, flops=20_000)
    model = costs(DecodeWork((busy,) * 6, 400, 10, 10, batch=1, context=8))
    assert model.decode_seconds(DepthPlan.parse("0", 6)) == pytest.approx(FIXED + 20 / 2 + 1 + 5)


def test_one_device_has_no_all_reduces() -> None:
    model = one_device()
    assert model.fixed_seconds == pytest.approx(4)
    assert model.decode_seconds(DepthPlan.parse("0", 6)) == pytest.approx(4 + 6 + 1)
    assert model.decode_seconds(DepthPlan.parse("(0|1)", 6, "lp")) == pytest.approx(4 + 12 + 1)
    assert model.decode_seconds(DepthPlan.parse("(0|1)", 6, "par")) == pytest.approx(4 + 12 + 2)
    assert model.worth("lp")
    assert not model.worth("par")


def test_nothing_to_gain_without_launches_and_latency() -> None:
    model = costs(kernel_launch_seconds=0, all_reduce_latency_seconds=0, link_bytes_per_second=1e30)
    assert not model.worth("lp")
    assert not model.worth("par")


def test_record() -> None:
    record = costs().record()
    assert record.source == "by-hand"
    assert record.fixed_seconds == pytest.approx(FIXED)
    assert record.layer_seconds == pytest.approx(SINGLE)
    assert record.pair_seconds == pytest.approx({"lp": 12.0, "par": 9.5})
    assert "lp 67%, par 53%" in record.note


def test_a_model_of_one_layer_has_no_pairs() -> None:
    model = costs(DecodeWork((LAYER,), 400, 10, 10, batch=1, context=8))
    assert model.record().pair_seconds == {}
    assert not model.worth("lp")


def test_costs_of_a_model(tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(FIELDS))
    model = tiny_model("llama")
    found = ProfileCosts.of(model, str(file), context=10, batch=2)
    assert found.work == DecodeWork.of(model, context=10, batch=2, bytes_per_value=2)
    assert found.name == str(file)


@pytest.mark.parametrize("name", shipped_profiles())
def test_shipped_profiles_load_and_prefer_pairs(name: str, tiny_model: Callable[..., Any]) -> None:
    found = ProfileCosts.of(tiny_model("llama"), name, context=10)
    assert found.profile.devices == 2
    assert found.worth("lp") and found.worth("par")


def test_documentation_has_every_field_and_a_working_example(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "measuring.md").read_text("utf-8")
    assert [name for name in HardwareProfile.model_fields if f"| `{name}` |" not in text] == []
    examples = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 1
    file = tmp_path / "example.yaml"
    file.write_text(examples[0])
    assert load_profile(str(file)).devices == 1


def test_exponents_without_a_point_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**FIELDS, "flops_per_second": "312e12"}))
    assert load_profile(str(file)).flops_per_second == 312e12


def test_unknown_name_lists_the_shipped_profiles() -> None:
    with pytest.raises(UsageError, match=r"no hardware profile 'a1000'.*a100-nvlink-x2, a100-pcie-x2"):
        load_profile("a1000")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory_bandwidth": 3}, "unknown field 'memory_bandwidth'; the fields are description, devices"),
        ({"devices": None}, "the field 'devices' is None"),
        ({"devices": 0}, "the field 'devices' is 0; input should be greater than or equal to 1"),
        ({"flops_per_second": "fast"}, "the field 'flops_per_second' is 'fast'"),
        ({"kernel_launch_seconds": -1}, "the field 'kernel_launch_seconds' is -1"),
        ({"memory_bytes_per_second": float("inf")}, "the field 'memory_bytes_per_second' is inf"),
        ({"link_bytes_per_second": None}, "2 devices need the field 'link_bytes_per_second'"),
        ({"sources": {}}, "the field 'memory_bytes_per_second' has no source"),
        ({"sources": {**FIELDS["sources"], "speed": "x"}}, "'sources' names 'speed'"),
    ],
)
def test_wrong_fields_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump({**FIELDS, **changes}))
    with pytest.raises(UsageError) as caught:
        load_profile(str(file))
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("field", FIELDS)
def test_missing_fields_are_named(field: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump({name: value for name, value in FIELDS.items() if name != field}))
    with pytest.raises(UsageError, match=field):
        load_profile(str(file))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"devices: [2\n", "is not YAML at line 2, column 1"),
        (b"just text", "is not a hardware profile; its fields are description"),
        (b"", "is not a hardware profile; its fields are description"),
        (b"\xff\xfe\x00devices", "is not UTF-8 text"),
        (b"devices: \x01", "is not YAML"),
    ],
)
def test_malformed_files(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        load_profile(str(file))
