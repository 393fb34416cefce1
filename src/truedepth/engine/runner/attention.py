"""Attention over preallocated caches, as an attention implementation of `transformers`.

A model's own attention modules call it (after their projections, norms and rotary embeddings) while `installed`
is in force. Query heads that share a key head are laid out as further queries of that head, so keys and values are
read once, in place, and never repeated.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig

from truedepth.engine.cpu.kernels import Kernels, kernels_for
from truedepth.models.private_transformers import attention_implementation

_NAME = "truedepth"

FEW_QUERIES = 40
"""Up to so many tokens a sequence, all that are decoded or verified among them, our own kernel attends, or query heads
become further queries; above, repeating keys and values costs less than a mask for all of them."""

HEAD_SIZES = 16
"""The kernel takes heads whose size is a multiple of this."""


def installed(config: PreTrainedConfig) -> AbstractContextManager[None]:
    """Make the model of `config` attend by `attend`; afterwards as before."""
    return attention_implementation(config, _NAME)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """softmax(q k^T * scaling + mask) v for each query head over the keys of its group.

    Args:
        query: (B, Hq, T, d).
        key, value: (B, Hkv, S, d).
        attention_mask: what to add to the scores, (B or 1, 1, T, S); None: each token sees all S where T is 1, and
            itself and what stands before it where T = S.
        softcap: bounds the scores to c * tanh(score / c), for the families that do so.

    Returns:
        (B, T, Hq, d), and None for the weights, which are not kept.
    """
    batch, heads, tokens, size = query.shape
    group = heads // key.shape[1]
    causal = attention_mask is None and tokens > 1
    if tokens <= FEW_QUERIES and not causal and (compiled := _kernel_for(query)):
        scale = size**-0.5 if scaling is None else scaling
        return compiled.attend(query, key, value, attention_mask, scale, softcap), None
    if tokens > FEW_QUERIES or causal:
        key, value = (_repeat(held, group) for held in (key, value))
    elif group > 1:
        query = query.reshape(batch, heads // group, group * tokens, -1)  # (B, Hkv, G T, d)
        if attention_mask is not None:
            attention_mask = attention_mask.repeat(1, 1, group, 1)  # (B, 1, G T, S)
    if softcap is None:
        output = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling, is_causal=causal
        )
    else:
        output = _capped(query, key, value, attention_mask, causal, scaling, softcap)
    output = output.reshape(batch, heads, tokens, -1)
    return output.transpose(1, 2), None  # (B, T, Hq, d)


def _kernel_for(query: Tensor) -> Kernels | None:
    return None if query.shape[-1] % HEAD_SIZES or query.requires_grad else kernels_for(query)


def _repeat(held: Tensor, group: int) -> Tensor:
    """(B, Hkv, S, d) to (B, Hkv * G, S, d)."""
    return held if group == 1 else held.repeat_interleave(group, dim=1)


def _capped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scaling: float | None, cap: float
) -> Tensor:
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = cap * torch.tanh(scores / cap)
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    elif mask is not None:
        scores = scores + mask
    return scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value


AttentionInterface.register(_NAME, attend)
