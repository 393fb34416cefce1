"""The cost of a plan on hardware that is described by a profile instead of being here.

The time of one decode step is the sum over stages of

    max(bytes / bandwidth, flops / rate) + launches * launch time
    + all-reduces * (latency + bytes / link rate)

with tensor parallelism over the profile's devices. `docs/measuring.md` describes the profile file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, model_validator

from truedepth.errors import UsageError
from truedepth.plan import FORMS, DepthPlan, Form, Stage
from truedepth.results import CostRecord
from truedepth.yaml_files import parse_yaml, read_yaml

if TYPE_CHECKING:
    from torch import nn

    from truedepth.measuring.work import DecodeWork, LayerWork

_WHAT = "a hardware profile"
_ALL_REDUCE_FIELDS = ("all_reduce_latency_seconds", "link_bytes_per_second")


class HardwareProfile(BaseModel):
    """What the cost formula must know of a machine. Every figure has its source."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    description: str = Field(description="one line: which devices, how they are linked")
    devices: int = Field(ge=1, description="devices that share the model by tensor parallelism")
    bytes_per_value: float = Field(gt=0, description="width of weights, cache and activations: 2 for bfloat16")
    memory_bytes_per_second: float = Field(gt=0, description="memory bandwidth of one device")
    flops_per_second: float = Field(gt=0, description="matrix arithmetic of one device at that width")
    launches_per_layer: int = Field(ge=0, description="kernels of one decoder layer, all-reduces apart")
    kernel_launch_seconds: float = Field(ge=0, description="what each kernel adds to a step")
    all_reduce_latency_seconds: float | None = Field(
        default=None, ge=0, description="an all-reduce of nothing; needed with more than one device"
    )
    link_bytes_per_second: float | None = Field(
        default=None, gt=0, description="bytes of an all-reduce over its time without the latency"
    )
    sources: dict[str, str] = Field(description="for each of the figures above, where it comes from")

    @model_validator(mode="after")
    def _complete(self) -> HardwareProfile:
        missing = [name for name in _ALL_REDUCE_FIELDS if getattr(self, name) is None]
        if self.devices > 1 and missing:
            raise ValueError(f"{self.devices} devices need the field '{missing[0]}'")
        figures = [name for name in self.figures() if getattr(self, name) is not None]
        for name in figures:
            if name not in self.sources:
                raise ValueError(f"the field '{name}' has no source; name one under 'sources'")
        for name in self.sources:
            if name not in figures:
                raise ValueError(f"'sources' names '{name}', which is not one of: {', '.join(figures)}")
        return self

    @classmethod
    def figures(cls) -> tuple[str, ...]:
        """The fields that need a source."""
        chosen = ("description", "devices", "bytes_per_value", "sources")
        return tuple(name for name in cls.model_fields if name not in chosen)

    def all_reduce_seconds(self, payload_bytes: float) -> float:
        """One all-reduce of `payload_bytes` over all devices; nothing on a single device."""
        if self.devices == 1:
            return 0.0
        assert self.all_reduce_latency_seconds is not None and self.link_bytes_per_second is not None
        return self.all_reduce_latency_seconds + payload_bytes / self.link_bytes_per_second

    def work_seconds(self, read_bytes: float, flops: float, devices: int) -> float:
        """Reading and computing, evenly spread over `devices`, whichever takes longer."""
        return max(read_bytes / self.memory_bytes_per_second, flops / self.flops_per_second) / devices


def shipped_profiles() -> tuple[str, ...]:
    """Names of the profiles that come with truedepth."""
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in _shipped()))


def load_profile(name: str) -> HardwareProfile:
    """A shipped profile by its name, or a profile file by its path.

    Raises:
        UsageError: there is no such profile (the shipped ones are listed), or the file is malformed (the
            field is named).
    """
    for entry in _shipped():
        if entry.name == f"{name}.yaml":
            return parse_yaml(entry.read_text("utf-8"), name, HardwareProfile, _WHAT, UsageError)
    path = Path(name)
    if not path.is_file():
        raise UsageError(
            f"there is no hardware profile '{name}'; give the path of a profile file, or one of the shipped "
            f"profiles: {', '.join(shipped_profiles())}"
        )
    return read_yaml(path, HardwareProfile, _WHAT, UsageError)


@dataclass(frozen=True)
class ProfileCosts:
    """The `CostModel` of a hardware profile (see `truedepth.measuring.costs`).

    A group in form lp is one wide layer: the launches of one layer, two all-reduces. A group in form par
    runs whole layers on the devices, as evenly as whole layers go, with one all-reduce; the device with the
    most layers sets the time. A single layer is sharded over all devices, with two all-reduces. Outside the
    stages a step reads the sharded LM head and final norm, and adds up the vocabulary-parallel embedding
    with one more all-reduce.

    Attributes:
        name: what the user called the profile.
        profile: the machine.
        work: the model's decode step, counted with the profile's `bytes_per_value`.
    """

    name: str
    profile: HardwareProfile
    work: DecodeWork

    @classmethod
    def of(cls, model: nn.Module, hardware: str, *, context: int, batch: int = 1) -> ProfileCosts:
        """The costs of a model on the hardware that `load_profile` finds under a name or path.

        Args:
            model, context, batch: see `DecodeWork.of`.

        Raises:
            UsageError: see `load_profile` and `DecodeWork.of`.
            UnsupportedModelError: the model's family is unknown.
        """
        from truedepth.measuring.work import DecodeWork

        profile = load_profile(hardware)
        width = profile.bytes_per_value
        work = DecodeWork.of(model, context=context, batch=batch, bytes_per_value=width)
        return cls(hardware, profile, work)

    def decode_seconds(self, plan: DepthPlan) -> float:
        """See `CostModel`."""
        return self.fixed_seconds + sum(self._stage_seconds(stage, plan.form) for stage in plan.stages)

    def speedup(self, plan: DepthPlan) -> float:
        """See `CostModel`."""
        return self.decode_seconds(DepthPlan.full(plan.num_layers)) / self.decode_seconds(plan)

    def worth(self, form: Form) -> bool:
        """See `CostModel`. A profile has no noise: any gain counts."""
        if len(self.work.layers) < 2:
            return False
        pair, two = self._pair_seconds(form), 2 * self._layer_seconds()
        return pair < two and not math.isclose(pair, two)

    def record(self) -> CostRecord:
        """See `CostModel`. Layers and pairs of neighbours are averaged over the model."""
        pairs = {form: self._pair_seconds(form) for form in FORMS} if len(self.work.layers) > 1 else {}
        shares = [f"{form} {seconds / self._layer_seconds() / 2:.0%}" for form, seconds in pairs.items()]
        found = ", ".join(shares) or "the model has none"
        return CostRecord(
            source=self.name,
            fixed_seconds=self.fixed_seconds,
            layer_seconds=self._layer_seconds(),
            pair_seconds=pairs,
            note=f"By the profile, pairs take this share of the time of two layers: {found}.",
        )

    @property
    def fixed_seconds(self) -> float:
        """A step without its stages."""
        profile, work = self.profile, self.work
        read = profile.work_seconds(work.outside_bytes, work.outside_flops, profile.devices)
        return read + profile.all_reduce_seconds(work.hidden_bytes)

    def _stage_seconds(self, stage: Stage, form: Form) -> float:
        profile, layers = self.profile, self.work.stage_layers(stage)
        all_reduce = profile.all_reduce_seconds(self.work.hidden_bytes)
        launches = profile.launches_per_layer * profile.kernel_launch_seconds
        if stage.is_group and form == "par":
            shares = [layers[rank :: profile.devices] for rank in range(profile.devices)]
            return max(self._seconds(own, 1) + len(own) * launches for own in shares) + all_reduce
        return self._seconds(layers, profile.devices) + launches + 2 * all_reduce

    def _seconds(self, layers: Sequence[LayerWork], devices: int) -> float:
        read = sum(layer.read_bytes for layer in layers)
        return self.profile.work_seconds(read, sum(layer.flops for layer in layers), devices)

    def _layer_seconds(self) -> float:
        return mean(self._stage_seconds(Stage((layer,)), "lp") for layer in range(len(self.work.layers)))

    def _pair_seconds(self, form: Form) -> float:
        count = len(self.work.layers) - 1
        return mean(self._stage_seconds(Stage((layer, layer + 1)), form) for layer in range(count))


def _shipped() -> Iterator[Traversable]:
    folder = files("truedepth.measuring") / "profiles"
    return (entry for entry in folder.iterdir() if entry.name.endswith(".yaml"))
