"""A made-up profile for sums in the head, shared by the tests of the cost formula."""

from __future__ import annotations

from typing import Any

import pytest


def _figure(value: float, **ends: float) -> dict[str, Any]:
    return {"value": value, **ends, "source": "made up"}


@pytest.fixture
def fields() -> dict[str, Any]:
    """The fields of a profile of two devices: 100 bytes and 1000 operations a second, launches of 0.25 s."""
    return {
        "description": "a machine for sums in the head",
        "devices": 2,
        "bytes_per_value": 2,
        "memory_bytes_per_second": _figure(100.0),
        "flops_per_second": _figure(1000.0),
        "stacks": {
            "plain": {
                "description": "one by one",
                "kernels_per_layer": _figure(4),
                "kernels_outside": _figure(2),
                "kernel_launch_seconds": _figure(0.25),
                "all_reduce_latency_seconds": _figure(2.0),
            },
            "fast": {
                "description": "all at once",
                "kernels_per_layer": _figure(0),
                "kernels_outside": _figure(0),
                "kernel_launch_seconds": _figure(0),
                "all_reduce_latency_seconds": _figure(0.5),
            },
        },
        "link": {"bytes_per_second": _figure(20.0), "further_device_seconds": _figure(1.0)},
    }
