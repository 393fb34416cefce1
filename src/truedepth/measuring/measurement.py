"""Everything that `truedepth measure` reports, in one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from truedepth.measuring.bandwidth import read_bandwidth
from truedepth.measuring.machine import MachineRecord, machine_record
from truedepth.measuring.speed import Comparison, compare, device_of
from truedepth.measuring.stage_times import StageTimes, stage_times
from truedepth.measuring.work import DecodeWork
from truedepth.plan import DepthPlan
from truedepth.records.progress import Progress, silent


@dataclass(frozen=True)
class Measurement:
    """What a model's plans cost on this machine.

    Attributes:
        plans: by name; the first one is the one that the others are compared with.
        comparison: their interleaved runs.
        bytes_per_token: weights and cache that decoding reads, halfway through the new tokens.
        machine: where it was measured.
        stages: parts of a decode step of each plan; empty where they were not asked for.
    """

    plans: Mapping[str, DepthPlan]
    comparison: Comparison
    bytes_per_token: Mapping[str, int]
    machine: MachineRecord
    stages: Mapping[str, StageTimes]

    def bandwidth_share(self, name: str) -> float:
        """See `truedepth.measuring.speed.Speed`."""
        speed = self.comparison.speeds[name]
        return speed.bandwidth_share(self.bytes_per_token[name], self.machine.bandwidth_bytes_per_second)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        report = self.comparison.to_dict()
        for name, figures in report["plans"].items():
            figures["bytes_per_token"] = self.bytes_per_token[name]
            figures["bandwidth_share"] = self.bandwidth_share(name)
            figures["plan"] = self.plans[name].to_dict()
            if name in self.stages:
                figures["step"] = asdict(self.stages[name])
        return {"machine": self.machine.model_dump(), **report}


def measure(
    model: nn.Module,
    plans: Mapping[str, DepthPlan],
    *,
    stages: bool = False,
    progress: Progress = silent,
    **sizes: int,
) -> Measurement:
    """Time `plans` against each other, and set their speed against the memory bandwidth of the device.

    Args:
        stages: also time the parts of a decode step under each plan.
        sizes: `prompt_tokens`, `new_tokens`, `batch` and `repeats` of `truedepth.measuring.speed.compare`.

    The other arguments and the errors are those of `compare`.
    """
    comparison = compare(model, plans, progress=progress, **sizes)
    prompt_tokens, batch = comparison.prompt_tokens, comparison.batch
    work = DecodeWork.of(model, context=prompt_tokens + (comparison.new_tokens + 1) // 2, batch=batch)
    device = device_of(model)
    parts: dict[str, StageTimes] = {}
    if stages:
        with progress("Timing stages", len(plans)) as step:
            for name, plan in plans.items():
                parts[name] = stage_times(model, plan, prompt_tokens=prompt_tokens, batch=batch)
                step()
    return Measurement(
        plans=dict(plans),
        comparison=comparison,
        bytes_per_token={name: work.bytes_per_token(plan) for name, plan in plans.items()},
        machine=machine_record(device, read_bandwidth(device)),
        stages=parts,
    )
