"""Norms and activations of a model that our own kernels compute in their place."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from truedepth.engine.cpu.forwards import Forward, ReplacedForwards
from truedepth.engine.cpu.kernels import ACTIVATIONS, DTYPES, kernels

_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Relative and absolute. Families round a norm twice in bfloat16, the kernels once."""


_OF_ACTIVATIONS = ("torch.nn.modules.activation", "transformers.activations")


class Quick:
    """A norm or an activation that a kernel computes: (..., D) to the same."""

    def __init__(self, module: nn.Module, forward: Forward) -> None:
        self.forwards = ReplacedForwards((module, forward))

    def unpack(self) -> None:
        self.forwards.put_back()


def quick_forward(module: nn.Module, dtype: torch.dtype) -> Forward | None:
    """A kernel that computes what a module computes on a CPU in this dtype; None if there is none.

    Whether it does is seen by trying: families write their norms each for itself, and Gemma's gain is 1 + weight.
    """
    if dtype not in DTYPES or "forward" in vars(module) or kernels() is None or any(module.children()):
        return None
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor):
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if epsilon is None or weight.dim() != 1 or weight.device.type != "cpu" or weight.dtype != dtype:
            return None
        return _same(module, _norms(weight.detach().float(), epsilon), torch.linspace(-1.5, 2, 3 * len(weight)), dtype)
    if not type(module).__module__.startswith(_OF_ACTIVATIONS):  # calling others might do more than compute
        return None
    return _same(module, _activations(), torch.linspace(-9, 9, 96), dtype)


def _norms(weight: Tensor, epsilon: float) -> list[Forward]:
    compiled: Any = kernels()
    return [partial(compiled.normalise, gain=gain, epsilon=epsilon) for gain in (weight, 1 + weight)]


def _activations() -> list[Forward]:
    compiled: Any = kernels()
    return [partial(compiled.activate, function) for function in ACTIVATIONS]


def _same(module: nn.Module, forwards: list[Forward], probe: Tensor, dtype: torch.dtype) -> Forward | None:
    """The first of `forwards` that computes what the module does on three rows of `probe`."""
    probe = probe.view(3, -1).to(dtype)
    try:
        expected = module(probe)
    except (TypeError, ValueError, RuntimeError, NotImplementedError):  # it is called in another way
        return None
    if not isinstance(expected, Tensor) or expected.shape != probe.shape or expected.dtype != dtype:
        return None
    tolerance = _TOLERANCE[dtype]
    found = (
        forward for forward in forwards if torch.allclose(expected, forward(probe), atol=tolerance, rtol=tolerance)
    )
    return next(found, None)
