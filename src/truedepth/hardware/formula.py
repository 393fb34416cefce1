"""The time of one forward pass under a plan, on hardware that a few numbers describe.

The pass takes the sum over stages, and over what is outside them, of

    max(bytes / bandwidth, flops / rate) + kernels * launch time + all-reduces * (latency + bytes / link rate)

with tensor parallelism over the devices, which share the work of a stage evenly and wait for each other at every
all-reduce. `docs/costs.md` says what is counted where.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from truedepth.plan import DepthPlan, Form, Stage

if TYPE_CHECKING:
    from truedepth.measuring.work import ForwardWork, LayerWork


@dataclass(frozen=True, slots=True)
class Range:
    """A figure: the value to use, and the lowest and the highest that it may be or that was seen."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, seen: Sequence[float]) -> Range:
        """What was seen need not enclose the value."""
        return cls(value, min(value, *seen), max(value, *seen))

    def __truediv__(self, divisor: float) -> Range:
        return Range(self.value / divisor, self.low / divisor, self.high / divisor)


@dataclass(frozen=True, slots=True)
class Machine:
    """What the formula must know of the hardware and of the software on it.

    Attributes:
        devices: devices that share the model by tensor parallelism.
        memory_bytes_per_second, flops_per_second: of one device.
        kernels_per_layer, kernels_outside: kernels of a decoder layer, and of a pass besides its layers; all-reduces
            apart.
        kernel_launch_seconds: what each kernel adds to a pass.
        outside_all_reduces: all-reduces of a pass besides those of its stages.
        gathers_logits: whether the devices gather the logits, of which each has computed a part.
        all_reduce_seconds: an all-reduce of nothing over all devices.
        link_bytes_per_second: bytes of an all-reduce over its time without the latency.
        fused_groups: whether a group in form lp has the kernels of one layer; else each device launches those of its
            share of the layers.
    """

    devices: int
    memory_bytes_per_second: float
    flops_per_second: float
    kernels_per_layer: float
    kernels_outside: float
    kernel_launch_seconds: float
    outside_all_reduces: int = 0
    gathers_logits: bool = False
    all_reduce_seconds: float = 0.0
    link_bytes_per_second: float = float("inf")
    fused_groups: bool = True

    def work(self, read_bytes: float, flops: float, devices: int) -> Parts:
        """Reading and computing, evenly spread over `devices`, whichever takes longer."""
        reading = read_bytes / self.memory_bytes_per_second / devices
        computing = flops / self.flops_per_second / devices
        return Parts(reading=reading) if reading >= computing else Parts(computing=computing)

    def launches(self, kernels: float) -> Parts:
        """Launching `kernels`."""
        return Parts(launches=kernels * self.kernel_launch_seconds)

    def all_reduces(self, count: int, payload_bytes: float) -> Parts:
        """`count` all-reduces of `payload_bytes` over all devices; nothing on a single device."""
        if self.devices == 1:
            return Parts()
        return Parts(all_reduces=count * (self.all_reduce_seconds + payload_bytes / self.link_bytes_per_second))

    def gathering(self, payload_bytes: float) -> Parts:
        """Gathering the devices' parts of `payload_bytes`: the second half of an all-reduce round a ring."""
        return Parts(all_reduces=self.all_reduces(1, payload_bytes).all_reduces / 2)


@dataclass(frozen=True, slots=True)
class Parts:
    """Where the seconds of a pass, or of a part of it, go."""

    reading: float = 0.0
    computing: float = 0.0
    launches: float = 0.0
    all_reduces: float = 0.0

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.reading + self.computing + self.launches + self.all_reduces

    def __add__(self, other: Parts) -> Parts:
        return Parts(
            self.reading + other.reading,
            self.computing + other.computing,
            self.launches + other.launches,
            self.all_reduces + other.all_reduces,
        )


def pass_parts(work: ForwardWork, plan: DepthPlan, machine: Machine) -> Parts:
    """A whole pass that runs the stages of `plan`."""
    return sum((stage_parts(work, stage, plan.form, machine) for stage in plan.stages), outside_parts(work, machine))


def outside_parts(work: ForwardWork, machine: Machine) -> Parts:
    """A pass without its stages: the LM head and the final norm, sharded, and the embedding."""
    computed = machine.work(work.outside_bytes, work.outside_flops, machine.devices)
    launched = machine.launches(machine.kernels_outside)
    sent = machine.all_reduces(machine.outside_all_reduces, work.hidden_bytes)
    if machine.gathers_logits:
        sent += machine.gathering(work.logits_bytes)
    return computed + launched + sent


def stage_parts(work: ForwardWork, stage: Stage, form: Form, machine: Machine) -> Parts:
    """One stage.

    A group in form lp is one wide layer, with two all-reduces, and with the kernels of one layer if it is fused. A
    group in form par runs whole layers on the devices, as evenly as whole layers go, with one all-reduce; the device
    with the most layers sets the time. A single or merged layer is sharded over all devices, with two all-reduces.
    """
    layers = work.stage_layers(stage)
    if stage.is_group and form == "par":
        shares = [layers[rank :: machine.devices] for rank in range(machine.devices)]
        slowest = max((_device_parts(own, machine) for own in shares), key=lambda parts: parts.seconds)
        return slowest + machine.all_reduces(1, work.hidden_bytes)
    launched = 1 if machine.fused_groups else math.ceil(len(layers) / machine.devices)
    return (
        machine.work(*_total(layers), machine.devices)
        + machine.launches(launched * machine.kernels_per_layer)
        + machine.all_reduces(2, work.hidden_bytes)
    )


def all_reduces(plan: DepthPlan, machine: Machine) -> int:
    """All-reduces of a pass, those outside the stages included; none on a single device."""
    return 0 if machine.devices == 1 else plan.all_reduces + machine.outside_all_reduces


def _device_parts(layers: Sequence[LayerWork], machine: Machine) -> Parts:
    """Whole layers on one device."""
    return machine.work(*_total(layers), 1) + machine.launches(len(layers) * machine.kernels_per_layer)


def _total(layers: Sequence[LayerWork]) -> tuple[int, int]:
    """Bytes and flops of several layers."""
    return sum(layer.read_bytes for layer in layers), sum(layer.flops for layer in layers)
