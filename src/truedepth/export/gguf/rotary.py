"""Rotary position embedding in a GGUF file: the inverse of `truedepth.models.gguf.rotary`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from truedepth.errors import UnsupportedModelError
from truedepth.models.gguf.rotary import (
    FREQUENCY_FACTORS,
    LLAMA3,
    LONG_FACTORS,
    SHORT_FACTORS,
    llama3_factors,
    yarn_attention,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig

BETA_FAST, BETA_SLOW = 32.0, 1.0
"""What llama.cpp and transformers take for YaRN where nothing is said."""


@dataclass(frozen=True)
class Rotary:
    """What a file says of rotary embedding.

    Attributes:
        keys: metadata, without the architecture's prefix.
        tensors: float32 vectors by name.
        note: what a user should know of it.
    """

    keys: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    note: str | None = None


def rotary_of(config: PreTrainedConfig, head_dim: int) -> Rotary:
    """What to write for a model whose layers all have the same rotary embedding.

    Raises:
        UnsupportedModelError: positions are scaled in a way that llama.cpp does not know.
    """
    import torch

    given: dict[str, Any] = dict(config.rope_parameters)
    base, kind = float(given["rope_theta"]), given.get("rope_type", "default")
    keys: dict[str, Any] = {
        "rope.freq_base": base,
        "rope.dimension_count": int(head_dim * given.get("partial_rotary_factor", 1.0)),
    }
    if kind == "default":
        return Rotary(keys)
    if kind == "linear":
        return Rotary(keys | {"rope.scaling.type": "linear", "rope.scaling.factor": float(given["factor"])})
    if kind == "llama3":
        factors = llama3_factors(base, head_dim, factor=float(given["factor"]), **{k: given[k] for k in LLAMA3})
        return Rotary(keys, {FREQUENCY_FACTORS: torch.from_numpy(factors)})
    if kind == "yarn":
        return Rotary(keys | _yarn(given))
    if kind == "longrope":
        tensors = {LONG_FACTORS: given["long_factor"], SHORT_FACTORS: given["short_factor"]}
        return Rotary(
            keys | _longrope(given, config),
            {name: torch.tensor(values, dtype=torch.float32) for name, values in tensors.items()},
            f"llama.cpp takes the factors of long texts where its context (-c) has more than "
            f"{given['original_max_position_embeddings']} tokens, the model where the text has; for short texts as the "
            "model computes them, use a context of no more",
        )
    raise _unknown(f"by '{kind}'")


def _yarn(given: dict[str, Any]) -> dict[str, Any]:
    factor = float(given["factor"])
    # llama.cpp has no key for these, or reads it in other architectures only; it rounds the bounds.
    if given.get("mscale") or given.get("mscale_all_dim"):
        raise _unknown("by 'yarn' with an 'mscale'")
    betas = float(given.get("beta_fast") or BETA_FAST), float(given.get("beta_slow") or BETA_SLOW)
    if betas != (BETA_FAST, BETA_SLOW):
        raise _unknown("by 'yarn' with a beta_fast or beta_slow of its own")
    if not given.get("truncate", True):
        raise _unknown("by 'yarn' with bounds that are not rounded")
    keys = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": int(given["original_max_position_embeddings"]),
    }
    usual = yarn_attention(factor)  # which llama.cpp computes by itself
    attention = float(given.get("attention_factor") or usual)
    return keys if math.isclose(attention, usual) else keys | {"rope.scaling.attn_factor": attention / usual}


def _longrope(given: dict[str, Any], config: PreTrainedConfig) -> dict[str, Any]:
    original = int(given["original_max_position_embeddings"])
    scale = float(given.get("factor") or config.max_position_embeddings / original)
    # Phi-3's own formula, which llama.cpp wants computed.
    usual = 1.0 if scale <= 1.0 else math.sqrt(1.0 + math.log(scale) / math.log(original))
    return {
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": float(given.get("attention_factor") or usual),
    }


def _unknown(how: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the model scales positions {how}, which llama.cpp cannot be told; "
        "export it for another engine with 'truedepth export hf'"
    )
