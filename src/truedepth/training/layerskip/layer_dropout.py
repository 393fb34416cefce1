"""Layer dropout: each sample of a batch skips each layer by chance, the later layers more often.

LayerSkip, arXiv 2404.16710, section 4.1.1. Layer l of L skips a sample at step t of T with probability

    p(l, t) = S(t) D(l) p_max,    D(l) = e^(l ln2 / (L-1)) - 1

where S(t) = 1 for a model that is trained already, and S(t) = e^(t ln2 / (T-1)) - 1 from scratch. D and S rise from 0
to 1, so the first layer never skips, and the last one does with probability p_max.

A sample that skips a layer is not computed there: the layer is called on the samples that stay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from truedepth.errors import UnsupportedModelError
from truedepth.training.hooks.layer_calls import LayerCall, zero_grad_call

Skips = NDArray[np.bool_]
"""Which sample skips which layer: (B, L)."""


def depth_factors(num_layers: int) -> list[float]:
    """D(l) for l = 0, ..., L-1 (section 4.1.1, equation 3). A single layer never skips."""
    return [_rise(layer, num_layers) for layer in range(num_layers)]


def time_factor(step: int, total_steps: int) -> float:
    """S(t) of training from scratch (section 4.1.1, equation 4), for step t = 0, ..., T-1.

    Training that is resumed beyond T stays at 1.
    """
    return _rise(min(step, total_steps - 1), total_steps)


def _rise(at: int, of: int) -> float:
    """From 0 at 0 to 1 at the last of `of` numbers."""
    return math.expm1(at * math.log(2) / (of - 1)) if of > 1 else 0.0


def draw_skips(probabilities: Sequence[float], rows: range, seed: int, step: int) -> Skips:
    """Which samples of a step skip which layers.

    The decisions belong to the samples' positions in the step's whole batch, over all ranks and accumulated parts. They
    are the same however that batch is divided, and after a resume.

    Args:
        probabilities: p(l, t) of each layer.
        rows: the positions of the samples wanted.

    Returns:
        (len(rows), L).
    """
    chances = np.random.default_rng((seed, step)).random((rows.stop, len(probabilities)))[rows.start :]
    return chances < np.asarray(probabilities)


class LayerDropout:
    """Goes around a model's layers (`wrap_layers`); `skips` says what the next forward leaves out.

    Attributes:
        skips: None: nothing is left out. Forwards in evaluation mode leave nothing out either.
    """

    def __init__(self) -> None:
        self.skips: Skips | None = None

    def __call__(self, layer: nn.Module, index: int, call: LayerCall, hidden: Tensor, inputs: dict[str, Any]) -> Tensor:
        if self.skips is None or not layer.training:
            return call(hidden, **inputs)
        if inputs.get("past_key_values") is not None:
            raise UnsupportedModelError(
                "layer dropout cannot run with a KV cache, whose entries would lack tokens; "
                "call the model with use_cache=False"
            )
        staying = np.flatnonzero(~self.skips[:, index])
        batch = hidden.shape[0]
        if len(staying) == batch:
            return call(hidden, **inputs)
        if len(staying) == 0:
            return zero_grad_call(call, layer, hidden, inputs)
        rows = torch.from_numpy(staying).to(hidden.device)
        given = {name: _rows_of(value, rows, batch) for name, value in inputs.items()}
        return hidden.index_copy(0, rows, call(hidden.index_select(0, rows), **given))


def _rows_of(value: Any, rows: Tensor, batch: int) -> Any:
    """Some rows of an input of a layer. Inputs that all samples share have one row, or no rows at all."""
    if isinstance(value, Tensor):
        return value.index_select(0, rows) if value.ndim > 1 and value.shape[0] == batch else value
    if isinstance(value, tuple):
        return tuple(_rows_of(part, rows, batch) for part in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UnsupportedModelError(
        f"layer dropout cannot take samples out of a {type(value).__name__}; "
        "load the model with attn_implementation='sdpa' or 'eager'"
    )
