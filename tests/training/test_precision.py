"""The warning of a precision that costs time, on a clock of our own. No test looks at real times."""

from __future__ import annotations

import warnings

import pytest
import torch

from truedepth.training import precision

CPU = torch.device("cpu")


@pytest.fixture
def bfloat16_takes(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """So many times as long as float32."""
    seconds = {torch.float32: 1.0, torch.bfloat16: request.param}
    monkeypatch.setattr(precision, "product_seconds", lambda matrices, *_: seconds[matrices[0].dtype])


@pytest.mark.parametrize("bfloat16_takes", [8.0], indirect=True)
@pytest.mark.usefixtures("bfloat16_takes")
def test_a_slow_precision_is_said_with_the_remedy() -> None:
    with pytest.warns(UserWarning, match="in bfloat16 8.0 times slower than in float32.*'precision: float32'"):
        precision.warn_of_slow_precision("bfloat16", CPU)


@pytest.mark.parametrize(
    ("bfloat16_takes", "chosen", "device"),
    [(0.5, "bfloat16", "cpu"), (1.1, "bfloat16", "cpu"), (8.0, "float32", "cpu"), (8.0, "bfloat16", "cuda")],
    indirect=["bfloat16_takes"],
)
@pytest.mark.usefixtures("bfloat16_takes")
def test_nothing_is_said_otherwise(chosen: str, device: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        precision.warn_of_slow_precision(chosen, torch.device(device))


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32"])
def test_every_precision_can_be_timed(kind: str) -> None:
    assert precision.product_seconds([torch.ones(8, 8, dtype=getattr(torch, kind))], 8, 0.0) > 0
