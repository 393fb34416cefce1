"""What a device does with the products of a model: at which rate it reads weights, computes, and starts kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from truedepth.errors import TruedepthError
from truedepth.hardware.formula import Range
from truedepth.measuring.bandwidth import beyond_caches
from truedepth.measuring.speed import compare, fixed_prompt, measuring, run_plan
from truedepth.measuring.timer import now
from truedepth.plan import DepthPlan

_CPU_WIDTH, _ACCELERATOR_WIDTH = 1024, 8192
"""Rows and columns of a matrix. CPUs run models of some hundred million parameters, and read narrow matrices slower; on
an accelerator the reading must outlast the launch of its kernel."""

_DECODE_ROWS = (1, 2, 8)
_PROMPT_ROWS = (64, 256, 1024)
_PASSES, _SECONDS = 5, 0.5
_LAYERS = 12


def reading_rate(device: torch.device, dtype: torch.dtype) -> Range:
    """Bytes per second at which products with 1 row read weights.

    The range has 2 and 8 rows, which a batch has, and matrices of half and of twice the width.

    Raises:
        TruedepthError: the weights do not fit into the device's free memory.
    """

    def bytes_per_second(rows: int, width: int) -> float:
        matrices = weights(device, dtype, width)
        return sum(matrix.nbytes for matrix in matrices) / product_seconds(matrices, rows, _SECONDS)

    usual = usual_width(device)
    of_rows = [bytes_per_second(rows, usual) for rows in _DECODE_ROWS]
    return Range.of(of_rows[0], [*of_rows, *(bytes_per_second(1, width) for width in (usual // 2, 2 * usual))])


def computing_rate(device: torch.device, dtype: torch.dtype) -> Range:
    """Operations per second of products with 256 rows; the range has 64 and 1024 rows.

    Raises:
        TruedepthError: the weights do not fit into the device's free memory.
    """
    matrices = weights(device, dtype, usual_width(device))[:4]
    values = sum(matrix.numel() for matrix in matrices)
    rates = [2 * values * rows / product_seconds(matrices, rows, _SECONDS) for rows in _PROMPT_ROWS]
    return Range.of(rates[1], rates)


@dataclass(frozen=True, slots=True)
class LaunchCosts:
    """What a step costs besides its reading and computing: medians, and quartiles over the rounds.

    Attributes:
        layer_seconds: of one decoder layer.
        outside_seconds: of a step besides its layers.
        layer_operations: operations that PyTorch dispatches for one layer, views apart.
        outside_operations: those of a step besides its layers.
    """

    layer_seconds: Range
    outside_seconds: Range
    layer_operations: int
    outside_operations: int


def launch_costs(device: torch.device, dtype: torch.dtype) -> LaunchCosts:
    """Time decode steps of a model that is too small to take time itself, with all layers and with half of them."""
    model = _smallest_model(device, dtype)
    half = DepthPlan.of_layers(range(_LAYERS // 2), _LAYERS)
    plans = {"full": DepthPlan.full(_LAYERS), "half": half}
    comparison = compare(model, plans, prompt_tokens=8, new_tokens=24, repeats=7)
    steps = [run.median_step_seconds for run in comparison.runs["full"]]
    layers = [2 * saved / _LAYERS for saved in comparison.saved_seconds("half")]
    outside = [step - _LAYERS * layer for step, layer in zip(steps, layers, strict=True)]
    if median(layers) <= 0 or median(outside) <= 0:
        raise TruedepthError("the time of a layer drowns in noise: something else keeps the machine busy; try again")
    counted = _operations(model, half.layers_used[-1] + 1, plans)
    return LaunchCosts(_positive(layers), _positive(outside), *counted)


def _positive(seen: Sequence[float]) -> Range:
    """The median and the quartiles; noise can make a difference negative."""
    return Range(*(max(0.0, value) for value in (median(seen), *quantiles(seen, n=4)[::2])))


def _operations(model: Any, half: int, plans: dict[str, DepthPlan]) -> tuple[int, int]:
    """Operations of a layer, and of a decode step besides its layers."""
    counts = []
    with measuring(model):
        for plan in plans.values():
            run_plan(model, plan)
            output = model(fixed_prompt(model, 1, 4), use_cache=True)
            with _Operations() as counter:
                model(fixed_prompt(model, 1, 1), past_key_values=output.past_key_values, use_cache=True)
            counts.append(counter.count)
    layer = (counts[0] - counts[1]) // (_LAYERS - half)
    return layer, counts[0] - _LAYERS * layer


class _Operations(TorchDispatchMode):
    """Counts the operations that PyTorch dispatches, except those that only look at a tensor in another way."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def _smallest_model(device: torch.device, dtype: torch.dtype) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    model: nn.Module = LlamaForCausalLM(config)
    return model.to(device=device, dtype=dtype).eval()


def usual_width(device: torch.device) -> int:
    """Rows and columns of a matrix as the models have that such a device runs."""
    return _CPU_WIDTH if device.type == "cpu" else _ACCELERATOR_WIDTH


def weights(device: torch.device, dtype: torch.dtype, width: int) -> list[Tensor]:
    """Matrices of (width, width), more than caches hold.

    Raises:
        TruedepthError: they do not fit into the device's free memory.
    """
    size = beyond_caches(device)
    count = max(1, size // (width * width * dtype.itemsize))
    try:
        return [torch.ones(width, width, dtype=dtype, device=device) for _ in range(count)]  # (D, D)
    except RuntimeError:
        raise TruedepthError(
            f"measuring the rates of {device} takes {size // 2**20} MiB of free memory; free some"
        ) from None


def product_seconds(matrices: Sequence[Tensor], rows: int, at_least: float) -> float:
    """The middle one of some passes: what a step may expect of a machine that does other work, too.

    Args:
        matrices: (D, D) each; a pass multiplies `rows` rows by all of them.
        at_least: seconds that the passes take together.
    """
    inputs = matrices[0].new_ones(rows, len(matrices[0]))  # (M, D)
    seconds: list[float] = []
    with torch.no_grad():
        while len(seconds) < _PASSES or sum(seconds) < at_least:
            start = now(inputs.device)
            for matrix in matrices:
                functional.linear(inputs, matrix)  # (M, D)
            seconds.append(now(inputs.device) - start)
    return median(seconds)
