"""Hardware as a profile describes it: a YAML file of figures, each with its range and its source.

A profile says what one device is, how such devices are linked, and under the name of a software stack what that adds
to every kernel and every all-reduce. `docs/costs.md` describes the file and those that are shipped.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from truedepth.errors import UsageError
from truedepth.hardware.formula import Machine
from truedepth.records.yaml_files import parse_yaml, read_yaml

End = Literal["value", "low", "high"]

_WHAT = "a hardware profile"
_COUNT = re.compile(r"(.*?)-?x([0-9]{1,4})")


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Figure(_Group):
    """A number, how far it may be off, and where it comes from."""

    value: float = Field(ge=0, description="what predictions are made with")
    low: float | None = Field(default=None, ge=0, description="the least it may be; left out: certain")
    high: float | None = Field(default=None, ge=0, description="the most it may be; left out: certain")
    source: str = Field(min_length=1, description="data sheet, measurement, or assumption with its reason")

    @model_validator(mode="after")
    def _ordered(self) -> Figure:
        if not self.at("low") <= self.value <= self.at("high"):
            raise ValueError(f"low {self.at('low'):g}, value {self.value:g} and high {self.at('high'):g} must ascend")
        return self

    def at(self, end: End) -> float:
        """The value, or one end of its range."""
        found = {"value": self.value, "low": self.low, "high": self.high}[end]
        return self.value if found is None else found

    @property
    def ends(self) -> tuple[End, ...]:
        """The ends of the range; the value alone where there is none."""
        return ("low", "high") if self.at("low") < self.at("high") else ("value",)


class Rate(Figure):
    """A figure that is divided by, and so must not be zero."""

    value: float = Field(gt=0, description="what predictions are made with")
    low: float | None = Field(default=None, gt=0, description="the least it may be; left out: certain")


class Link(_Group):
    """How devices are linked."""

    devices: int = Field(default=2, ge=2, description="for how many devices the figures of all-reduces are")
    bytes_per_second: Rate = Field(description="bytes of an all-reduce over its time without the latency")
    further_device_seconds: Figure | None = Field(
        default=None, description="what each further device adds to the latency; left out: no other number of devices"
    )


class Stack(_Group):
    """What software adds to the work of the device."""

    description: str = Field(description="one line: which kind of program")
    kernels_per_layer: Figure = Field(description="kernels of one decoder layer, all-reduces apart")
    kernels_outside: Figure = Field(description="kernels of a pass besides its layers, all-reduces apart")
    kernel_launch_seconds: Figure = Field(description="what each kernel adds to a pass")
    all_reduce_latency_seconds: Figure | None = Field(
        default=None, description="an all-reduce of nothing; needed with more than one device"
    )
    outside_all_reduces: int = Field(
        default=1, ge=0, description="all-reduces besides those of stages; 1 where the embedding is sharded"
    )
    gathers_logits: bool = Field(
        default=True, description="whether the devices gather the logits, of which each has computed a part"
    )
    fused_groups: bool = Field(
        default=True, description="whether a group in form lp has the kernels of one layer, or those of its layers"
    )


class HardwareProfile(_Group):
    """What the cost formula must know of a machine."""

    description: str = Field(description="one line: which device, and how such devices are linked")
    devices: int = Field(default=1, ge=1, description="devices that share the model unless another number is asked for")
    bytes_per_value: float = Field(gt=0, description="width of weights, cache and activations: 2 for bfloat16")
    memory_bytes_per_second: Rate = Field(description="rate at which one device reads weights")
    flops_per_second: Rate = Field(description="matrix arithmetic of one device at that width")
    stacks: dict[str, Stack] = Field(min_length=1, description="software by name; the first is used unless named")
    link: Link | None = Field(default=None, description="needed with more than one device")

    @model_validator(mode="after")
    def _linked(self) -> HardwareProfile:
        for stack in self.stacks:
            self.require(self.devices, stack)
        return self

    def require(self, devices: int, stack: str) -> None:
        """Refuse a number of devices that the profile says too little about.

        Raises:
            ValueError: what is missing.
        """
        if devices == 1:
            return
        if self.link is None:
            raise ValueError(f"{devices} devices need the field 'link', which says how they are linked")
        if self.stacks[stack].all_reduce_latency_seconds is None:
            raise ValueError(f"{devices} devices need the field 'all_reduce_latency_seconds' in the stack '{stack}'")
        if devices != self.link.devices and self.link.further_device_seconds is None:
            raise ValueError(
                f"the link is described for {self.link.devices} devices; {devices} need the field "
                "'further_device_seconds' in 'link'"
            )


@dataclass(frozen=True)
class Hardware:
    """A profile, a number of devices and a stack: all that times depend on.

    Attributes:
        name: what the user called it.
        profile: the figures.
        devices: devices that share the model by tensor parallelism.
        stack: the name of one of the profile's stacks.
    """

    name: str
    profile: HardwareProfile
    devices: int
    stack: str

    @property
    def machine(self) -> Machine:
        """The formula's numbers, at the values of all figures."""
        return self._machine(dict.fromkeys(self._figures, "value"))

    @property
    def corners(self) -> tuple[Machine, ...]:
        """The formula's numbers with every figure at one end of its range, in every combination."""
        names, ends = self._figures.keys(), (figure.ends for figure in self._figures.values())
        return tuple(self._machine(dict(zip(names, chosen, strict=True))) for chosen in itertools.product(*ends))

    @property
    def _figures(self) -> dict[str, Figure]:
        profile, stack = self.profile, self.profile.stacks[self.stack]
        figures: dict[str, Figure | None] = {
            "memory": profile.memory_bytes_per_second,
            "flops": profile.flops_per_second,
            "kernels_per_layer": stack.kernels_per_layer,
            "kernels_outside": stack.kernels_outside,
            "launch": stack.kernel_launch_seconds,
        }
        if self.devices > 1 and profile.link is not None:
            figures["latency"] = stack.all_reduce_latency_seconds
            figures["link"] = profile.link.bytes_per_second
            if self.devices != profile.link.devices:
                figures["further"] = profile.link.further_device_seconds
        return {name: figure for name, figure in figures.items() if figure is not None}

    def _machine(self, ends: dict[str, End]) -> Machine:
        at = {name: figure.at(ends[name]) for name, figure in self._figures.items()}
        link = self.profile.link
        base = link.devices if link else 2
        # A ring sends every byte 2 (N - 1) / N times over each link.
        share = ((base - 1) / base) / ((self.devices - 1) / self.devices) if self.devices > 1 else 1.0
        latency = at.get("latency", 0.0) + (self.devices - base) * at.get("further", 0.0)
        return Machine(
            devices=self.devices,
            memory_bytes_per_second=at["memory"],
            flops_per_second=at["flops"],
            kernels_per_layer=at["kernels_per_layer"],
            kernels_outside=at["kernels_outside"],
            kernel_launch_seconds=at["launch"],
            outside_all_reduces=self.profile.stacks[self.stack].outside_all_reduces,
            all_reduce_seconds=max(0.0, latency),
            link_bytes_per_second=share * at.get("link", float("inf")),
            gathers_logits=self.profile.stacks[self.stack].gathers_logits,
            fused_groups=self.profile.stacks[self.stack].fused_groups,
        )


def shipped_profiles() -> tuple[str, ...]:
    """Names of the profiles that come with truedepth."""
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in _shipped()))


def load_hardware(text: str, devices: int | None = None) -> Hardware:
    """The hardware that a user means.

    Args:
        text: the name of a shipped profile or the path of a profile file; `-xN` or `xN` behind a name says how many
            devices, `:STACK` behind either which software: `h100-x2`, `a100-nvlink-x2:eager`, `mine.yaml`.
        devices: overrides the number of devices.

    Raises:
        UsageError: there is no such profile or stack (those that there are are listed), the file is malformed (the
            field is named), or the profile does not describe a link of so many devices.
    """
    name, stack = (text, None) if Path(text).is_file() else _without_stack(text)
    profile, counted = _find(name)
    if stack is None:
        stack = next(iter(profile.stacks))
    if stack not in profile.stacks:
        raise UsageError(f"the profile '{name}' has no stack '{stack}'; it has: {', '.join(profile.stacks)}")
    count = next(number for number in (devices, counted, profile.devices) if number is not None)
    if count < 1:
        raise UsageError(f"'{text}' asks for {count} devices; give at least 1")
    try:
        profile.require(count, stack)
    except ValueError as error:
        raise UsageError(f"the profile '{name}' cannot say what {count} devices do: {error}") from None
    return Hardware(text, profile, count, stack)


def _without_stack(text: str) -> tuple[str, str | None]:
    name, colon, stack = text.rpartition(":")
    return (name, stack) if colon else (text, None)


def _find(text: str) -> tuple[HardwareProfile, int | None]:
    """The profile, and the number of devices that stands behind its name."""
    path = Path(text)
    if path.is_file():
        return read_yaml(path, HardwareProfile, _WHAT, UsageError), None
    counted = _COUNT.fullmatch(text)
    for base, devices in ((text, None), (counted[1], int(counted[2])) if counted else (text, None)):
        for entry in _shipped():
            if entry.name == f"{base}.yaml":
                content = entry.read_text("utf-8")
                return parse_yaml(content, base, HardwareProfile, _WHAT, UsageError), devices
    raise UsageError(
        f"there is no hardware profile '{text}'; give the path of a profile file, or one of the shipped "
        f"profiles: {', '.join(shipped_profiles())}"
    )


def _shipped() -> Iterator[Traversable]:
    folder = files("truedepth.hardware") / "profiles"
    return (entry for entry in folder.iterdir() if entry.name.endswith(".yaml"))
