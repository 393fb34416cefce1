"""Hardware profiles: names, numbers of devices, ranges, what is shipped, and what is said about wrong files."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from truedepth.errors import UsageError
from truedepth.hardware.profile import Figure, HardwareProfile, load_hardware, shipped_profiles

DOCS = Path(__file__).parents[2] / "docs" / "costs.md"


@pytest.fixture
def written(fields: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """Writes the profile with changes, each at a dotted place; None takes the field away."""

    def write(**changes: Any) -> Path:
        changed = copy.deepcopy(fields)
        for place, value in changes.items():
            *groups, name = place.split("__")
            group = changed
            for key in groups:
                group = group[key]
            if value is None:
                del group[name]
            else:
                group[name] = value
        file = tmp_path / "mine.yaml"
        file.write_text(yaml.safe_dump(changed, sort_keys=False))
        return file

    return write


def test_a_file_its_stacks_and_devices(written: Callable[..., Path]) -> None:
    file = written()
    found = load_hardware(str(file))
    assert (found.devices, found.stack) == (2, "plain")
    assert found.machine.all_reduce_seconds == 2
    assert found.machine.fused_groups
    alone = load_hardware(str(file), devices=1)
    assert (alone.devices, alone.machine.all_reduce_seconds) == (1, 0)
    fast = load_hardware(f"{file}:fast")
    assert (fast.stack, fast.machine.all_reduce_seconds) == ("fast", 0.5)


def test_more_devices_go_round_a_longer_ring(written: Callable[..., Path]) -> None:
    four = load_hardware(str(written()), devices=4).machine
    assert four.all_reduce_seconds == 2 + 2 * 1
    # A byte goes 2 * 3/4 times over each link instead of 2 * 1/2 times.
    assert four.link_bytes_per_second == pytest.approx(20 / 1.5)


@pytest.mark.parametrize(
    ("name", "devices", "stack"),
    [("h100", 1, "cuda-graphs"), ("h100x2", 2, "cuda-graphs"), ("a100-nvlink-x4:eager", 4, "eager")],
)
def test_names_say_how_many_and_how(name: str, devices: int, stack: str) -> None:
    found = load_hardware(name)
    assert (found.name, found.devices, found.stack) == (name, devices, stack)
    assert load_hardware(name, devices=2).devices == 2


def test_corners_are_all_combinations_of_ends(written: Callable[..., Path]) -> None:
    ranged = {"value": 100.0, "low": 50.0, "high": 120.0, "source": "made up"}
    latency = {"value": 2.0, "low": 1.0, "source": "made up"}
    file = written(memory_bytes_per_second=ranged, stacks__plain__all_reduce_latency_seconds=latency)
    corners = load_hardware(str(file)).corners
    seen = {(corner.memory_bytes_per_second, corner.all_reduce_seconds) for corner in corners}
    assert seen == {(50, 1), (50, 2), (120, 1), (120, 2)}
    assert len(corners) == 4
    # A single device has no all-reduces to be unsure of.
    assert len(load_hardware(str(file), devices=1).corners) == 2


@pytest.mark.parametrize("name", shipped_profiles())
def test_shipped_profiles_have_ranges_sources_and_a_row_in_the_documentation(name: str) -> None:
    found = load_hardware(f"{name}-x2")
    figures = list(_figures(found.profile))
    assert len(figures) >= 7
    for figure in figures:
        assert figure.at("low") < figure.at("high"), figure
        assert len(figure.source) > 20
    assert found.profile.memory_bytes_per_second.value < found.profile.flops_per_second.value
    for stack in found.profile.stacks:
        assert load_hardware(f"{name}-x2:{stack}").machine.all_reduce_seconds > 0
    assert f"| `{name}` |" in DOCS.read_text("utf-8")


def _figures(group: Any) -> Any:
    for name in type(group).model_fields:
        value = getattr(group, name)
        if isinstance(value, Figure):
            yield value
        elif name == "stacks":
            for stack in value.values():
                yield from _figures(stack)
        elif name == "link":
            yield from _figures(value)


def test_the_known_profiles_are_shipped() -> None:
    known = {"a100-nvlink", "a100-pcie", "h100", "h200", "l40s", "rtx-4090", "epyc-9654", "xeon-8480"}
    assert set(shipped_profiles()) == known


def test_every_shipped_line_is_short_enough_to_read() -> None:
    folder = files("truedepth.hardware") / "profiles"
    for entry in folder.iterdir():
        assert max(map(len, entry.read_text("utf-8").splitlines())) <= 120, entry.name


def test_documentation_has_every_field() -> None:
    text = DOCS.read_text("utf-8")
    schema = HardwareProfile.model_json_schema()
    groups = [schema, *schema["$defs"].values()]
    names = {name for group in groups for name in group["properties"]}
    assert sorted(name for name in names if f"`{name}`" not in text) == []


def test_the_documented_example_loads(tmp_path: Path) -> None:
    examples = re.findall(r"```yaml\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    assert len(examples) == 1
    file = tmp_path / "example.yaml"
    file.write_text(examples[0])
    assert load_hardware(str(file)).machine.kernels_per_layer == 30


def test_exponents_without_a_point_are_numbers(written: Callable[..., Path]) -> None:
    file = written(flops_per_second={"value": "312e12", "source": "made up"})
    assert load_hardware(str(file)).machine.flops_per_second == 312e12


def test_unknown_names_list_those_that_there_are(written: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match=r"no hardware profile 'a1000'.*a100-nvlink, a100-pcie, epyc-9654, h100"):
        load_hardware("a1000")
    with pytest.raises(UsageError, match=r"no hardware profile 'a1000-x2'"):
        load_hardware("a1000-x2")
    with pytest.raises(UsageError, match="no stack 'slow'; it has: plain, fast"):
        load_hardware(f"{written()}:slow")
    with pytest.raises(UsageError, match="asks for 0 devices"):
        load_hardware("h100-x0")


@pytest.mark.parametrize(
    ("changes", "devices", "message"),
    [
        ({"devices": 1, "link": None}, 2, "2 devices need the field 'link'"),
        ({"link__further_device_seconds": None}, 4, "4 need the field 'further_device_seconds'"),
    ],
)
def test_devices_that_the_link_does_not_describe(
    written: Callable[..., Path], changes: dict[str, Any], devices: int, message: str
) -> None:
    changes = {"stacks__fast": None, **changes}
    with pytest.raises(UsageError, match=message):
        load_hardware(str(written(**changes)), devices=devices)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory_bandwidth": 3}, "unknown field 'memory_bandwidth'; the fields are description, devices"),
        ({"devices": 0}, "the field 'devices' is 0; input should be greater than or equal to 1"),
        ({"flops_per_second__value": "fast"}, "the field 'flops_per_second.value' is 'fast'"),
        ({"flops_per_second__value": 0}, "the field 'flops_per_second.value' is 0"),
        ({"flops_per_second__source": None}, "the field 'flops_per_second.source' is missing"),
        ({"flops_per_second__source": ""}, "the field 'flops_per_second.source' is ''"),
        ({"flops_per_second__low": 2e3}, "must ascend"),
        ({"stacks__plain__kernel_launch_seconds__value": -1}, "kernel_launch_seconds.value' is -1"),
        ({"memory_bytes_per_second__value": float("inf")}, "the field 'memory_bytes_per_second.value' is inf"),
        ({"link": None}, "2 devices need the field 'link'"),
        ({"stacks": {}}, "the field 'stacks' is {}"),
        ({"stacks__plain__all_reduce_latency_seconds": None}, "all_reduce_latency_seconds' in the stack 'plain'"),
    ],
)
def test_wrong_fields_are_named(written: Callable[..., Path], changes: dict[str, Any], message: str) -> None:
    file = written(**changes)
    with pytest.raises(UsageError) as caught:
        load_hardware(str(file))
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"devices: [2\n", "is not YAML at line 2, column 1"),
        (b"just text", "is not a hardware profile; its fields are description"),
        (b"", "is not a hardware profile; its fields are description"),
        (b"\xff\xfe\x00devices", "is UTF-16 text; save it as UTF-8"),
        (b"devices\xff", "is not UTF-8 text"),
    ],
)
def test_malformed_files(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        load_hardware(str(file))
