"""The cost formula against numbers by hand, and what must hold for any plan and machine."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truedepth.hardware.formula import Machine, Parts, all_reduces, pass_parts
from truedepth.measuring.work import DecodeWork, LayerWork
from truedepth.plan import DepthPlan, Form, Stage

MACHINE = Machine(
    devices=2,
    memory_bytes_per_second=100,
    flops_per_second=1000,
    kernels_per_layer=4,
    kernels_outside=2,
    kernel_launch_seconds=0.25,
    outside_all_reduces=1,
    all_reduce_seconds=2,
    link_bytes_per_second=20,
)
# A layer: 600 bytes in 6 s on one device, 3 s on two; 2000 flops in 2 s: reading takes longer.
LAYER = LayerWork(weight_bytes=500, cache_bytes=100, flops=2000)
WORK = DecodeWork(
    (LAYER,) * 6, outside_bytes=400, outside_flops=10, hidden_bytes=10, logits_bytes=8, batch=1, context=8
)

FIXED = 400 / 100 / 2 + 2 * 0.25 + 2.5  # the head's share, two kernels, the embedding's all-reduce: 2 + 10/20
SINGLE = 6 / 2 + 4 * 0.25 + 2 * 2.5


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
def test_two_devices_by_hand(notation: str, form: Form, stages: float) -> None:
    plan = DepthPlan.parse(notation, 6, form)
    assert pass_parts(WORK, plan, MACHINE).seconds == pytest.approx(FIXED + stages)


def test_one_device_has_no_all_reduces() -> None:
    alone = replace(MACHINE, devices=1)

    def parts(notation: str, form: Form) -> Parts:
        return pass_parts(WORK, DepthPlan.parse(notation, 6, form), alone)

    assert parts("0", "lp") == Parts(reading=4 + 6, launches=0.5 + 1)
    assert parts("(0|1)", "lp") == Parts(reading=4 + 12, launches=0.5 + 1)
    assert parts("(0|1)", "par") == Parts(reading=4 + 12, launches=0.5 + 2)
    assert all_reduces(DepthPlan.full(6), alone) == 0


@pytest.mark.parametrize(("devices", "notation", "kernels"), [(1, "(0|1)", 8), (2, "(0|1)", 4), (2, "(0|1|2)", 8)])
def test_layers_of_a_group_that_is_not_fused_are_launched_one_by_one(devices: int, notation: str, kernels: int) -> None:
    machine = replace(MACHINE, devices=devices, fused_groups=False)
    parts = pass_parts(WORK, DepthPlan.parse(notation, 6), machine)
    assert parts.launches == pytest.approx((2 + kernels) * 0.25)
    assert pass_parts(WORK, DepthPlan.parse("(0+1)", 6), machine).launches == pytest.approx((2 + 4) * 0.25)


def test_parts_say_what_bounds_a_stage() -> None:
    busy = LayerWork(weight_bytes=500, cache_bytes=100, flops=20_000)
    work = replace(WORK, layers=(busy, LAYER))
    parts = pass_parts(work, DepthPlan.full(2), MACHINE)
    assert parts == Parts(reading=2 + 3, computing=10, launches=0.5 + 2, all_reduces=5 * 2.5)
    assert parts.seconds == pytest.approx(30)


def test_gathering_the_logits_is_half_an_all_reduce_of_them() -> None:
    gathering = replace(MACHINE, gathers_logits=True)
    before, after = (pass_parts(WORK, DepthPlan.full(6), machine) for machine in (MACHINE, gathering))
    assert after.all_reduces - before.all_reduces == pytest.approx((2 + 8 / 20) / 2)
    assert after == replace(before, all_reduces=after.all_reduces)


layers = st.builds(LayerWork, st.integers(1, 10**9), st.integers(0, 10**9), st.integers(1, 10**12))
rates = st.floats(1e6, 1e15)
times = st.floats(0, 1e-2)


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    return Machine(
        devices=draw(st.integers(1, 8)),
        memory_bytes_per_second=draw(rates),
        flops_per_second=draw(rates),
        kernels_per_layer=draw(st.integers(0, 50)),
        kernels_outside=draw(st.integers(0, 50)),
        kernel_launch_seconds=draw(times),
        outside_all_reduces=draw(st.integers(0, 2)),
        all_reduce_seconds=draw(times),
        link_bytes_per_second=draw(rates),
        gathers_logits=draw(st.booleans()),
        fused_groups=draw(st.booleans()),
    )


@st.composite
def works(draw: st.DrawFn) -> DecodeWork:
    found = tuple(draw(st.lists(layers, min_size=2, max_size=8)))
    outside, flops, hidden, logits = (draw(st.integers(1, 10**9)) for _ in range(4))
    return DecodeWork(found, outside, flops, hidden, logits, batch=1, context=1)


def plans(draw: Any, depth: int) -> DepthPlan:
    cuts = [0, *sorted(draw(st.sets(st.integers(1, depth - 1)))), depth]
    stages = tuple(Stage(tuple(range(a, b))) for a, b in pairwise(cuts))
    return DepthPlan(stages, depth, draw(st.sampled_from(("lp", "par"))))


@given(st.data(), works(), machines(), st.floats(1, 10))
def test_better_hardware_is_never_slower(data: st.DataObject, work: DecodeWork, machine: Machine, more: float) -> None:
    plan = plans(data.draw, len(work.layers))
    before = pass_parts(work, plan, machine).seconds
    for name in ("memory_bytes_per_second", "flops_per_second", "link_bytes_per_second"):
        faster = replace(machine, **{name: more * getattr(machine, name)})
        assert pass_parts(work, plan, faster).seconds <= before * (1 + 1e-12)
    for name in ("kernel_launch_seconds", "all_reduce_seconds"):
        faster = replace(machine, **{name: getattr(machine, name) / more})
        assert pass_parts(work, plan, faster).seconds <= before * (1 + 1e-12)


@given(st.data(), works(), machines())
def test_more_stages_are_never_faster(data: st.DataObject, work: DecodeWork, machine: Machine) -> None:
    depth = len(work.layers)
    split = plans(data.draw, depth).with_form("lp")
    stages = split.stages
    if len(stages) < 2:
        return
    grouped = Stage((*stages[0].layers, *stages[1].layers))
    fewer = DepthPlan((grouped, *stages[2:]), depth, "lp")
    # Both read and compute the same; max() of sums is at most the sum of max().
    assert pass_parts(work, fewer, machine).seconds <= pass_parts(work, split, machine).seconds * (1 + 1e-12)


@given(st.data(), works(), machines())
def test_skipping_is_never_slower(data: st.DataObject, work: DecodeWork, machine: Machine) -> None:
    plan = plans(data.draw, len(work.layers))
    if len(plan.stages) < 2:
        return
    shorter = replace(plan, stages=plan.stages[1:])
    assert pass_parts(work, shorter, machine).seconds <= pass_parts(work, plan, machine).seconds


@given(st.data(), works(), machines())
def test_all_reduces_by_formula(data: st.DataObject, work: DecodeWork, machine: Machine) -> None:
    plan = plans(data.draw, len(work.layers))
    unit = replace(machine, gathers_logits=False, all_reduce_seconds=1.0, link_bytes_per_second=float("inf"))
    singles, groups = len(plan.stages) - len(plan.groups), len(plan.groups)
    expected = machine.outside_all_reduces + 2 * singles + (1 if plan.form == "par" else 2) * groups
    counted = 0 if machine.devices == 1 else expected
    assert all_reduces(plan, machine) == counted
    assert pass_parts(work, plan, unit).all_reduces == pytest.approx(counted)
