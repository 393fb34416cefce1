"""Measuring the hardware profile of the machine that this runs on."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from truedepth.hardware.all_reduces import all_reduce_latency, link_rate, over_ranks
from truedepth.hardware.formula import Range
from truedepth.hardware.profile import Figure, HardwareProfile, Link, Rate, Stack
from truedepth.hardware.rates import LaunchCosts, computing_rate, launch_costs, reading_rate
from truedepth.measuring.machine import device_name, processor_name
from truedepth.parallel.launch import started_ranks
from truedepth.records.files import write_atomic
from truedepth.records.progress import Progress, silent

STACK = "eager"

_LATENCY = "measured: what all-reduces of 1 kB add to products, in runs of 50; range: first to last tenth"


def measure_profile(device: torch.device, dtype: torch.dtype, progress: Progress = silent) -> HardwareProfile:
    """The profile of this machine as PyTorch uses it now: this device, this type, as many threads as it has.

    Within `truedepth.parallel.launch.joined_ranks`, every rank measures at the same time, as the ranks of a model work
    at the same time, and the profile has the group's all-reduces too. All ranks must call this; all get the profile.

    Raises:
        TruedepthError: too little free memory, or too much noise.
    """
    count = started_ranks()
    with progress("Measuring the machine", 5 if count > 1 else 3) as step:
        reading = over_ranks(reading_rate(device, dtype), device)
        step()
        computing = over_ranks(computing_rate(device, dtype), device)
        step()
        launches = launch_costs(device, dtype)
        launches = replace(
            launches,
            layer_seconds=over_ranks(launches.layer_seconds, device),
            outside_seconds=over_ranks(launches.outside_seconds, device),
        )
        step()
        latency = link = None
        if count > 1:
            latency = over_ranks(all_reduce_latency(device, dtype), device)
            step()
            rate = over_ranks(link_rate(device, latency), device)
            link = Link(devices=count, bytes_per_second=_rate(rate, f"all-reduces of 4 MiB over {count} ranks"))
            step()
    kind = str(dtype).removeprefix("torch.")
    name = processor_name() if device.type == "cpu" else device_name(device)
    ways = f", {count} ranks" if count > 1 else ""
    how = f"{torch.get_num_threads()} threads{ways}, {kind}"
    return HardwareProfile(
        description=f"{name}, {how}, measured with PyTorch {torch.__version__}",
        devices=count,
        bytes_per_value=dtype.itemsize,
        memory_bytes_per_second=_rate(
            reading, "products of 1 row with weights; range: 2 and 8 rows, half and twice the width"
        ),
        flops_per_second=_rate(computing, "products of 256 rows with weights; range: 64, 256 and 1024 rows"),
        stacks={STACK: _stack(launches, latency)},
        link=link,
    )


def save_profile(profile: HardwareProfile, path: Path) -> None:
    """Write a profile as YAML.

    Raises:
        OutputError: the file cannot be written.
    """
    header = "# Measured by: truedepth measure --profile\n"
    write_atomic(path, header + to_yaml(profile))


def to_yaml(profile: HardwareProfile) -> str:
    """A profile as the text of a profile file."""
    fields: dict[str, Any] = profile.model_dump(exclude_none=True)
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=110)


def _stack(launches: LaunchCosts, latency: Range | None) -> Stack:
    layer, outside = launches.layer_seconds, launches.outside_seconds
    operations = launches.layer_operations
    launch = layer / operations
    return Stack(
        description="transformers on PyTorch, operations launched one by one",
        kernels_per_layer=Figure(value=operations, source="operations that PyTorch dispatches, counted"),
        kernels_outside=Figure(
            **asdict(outside / launch.value),
            source=f"measured time over that of a launch; {launches.outside_operations} operations were counted",
        ),
        kernel_launch_seconds=Figure(
            **asdict(launch),
            source="measured: a layer too small to take time itself, over its operations; range: quartiles",
        ),
        all_reduce_latency_seconds=Figure(**asdict(latency), source=_LATENCY) if latency else None,
        # The embedding of our own run is whole on every rank.
        outside_all_reduces=0,
        fused_groups=False,
    )


def _rate(seen: Range, what: str) -> Rate:
    return Rate(**asdict(seen), source=f"measured: {what}")
