"""Low-rank adapters (LoRA, arXiv 2106.09685) on some layers of a model, by the library `peft`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from pydantic import Field
from torch import nn

from truedepth.errors import UnsupportedModelError, UsageError
from truedepth.families import family_of
from truedepth.models.loading.quiet import quiet_transformers
from truedepth.records.recipe import Settings


class Lora(Settings):
    """Train adapters instead of weights; they are merged into the weights at the end."""

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1, description="adapters count alpha / rank times")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="of what goes into an adapter")


def add_lora(model: nn.Module, lora: Lora, layers: Sequence[int], seed: int) -> nn.Module:
    """Put adapters on all linear projections of some decoder layers, and freeze everything else.

    Args:
        model: a causal language model of a supported family.
        seed: for the adapters' first weights, which have no effect yet.

    Returns:
        The model, wrapped by PEFT.

    Raises:
        UsageError: `peft` is not installed.
        UnsupportedModelError: the layers have no linear projections.
    """
    if find_spec("peft") is None:
        raise UsageError("training with LoRA needs peft; install it with: pip install peft")
    from peft import LoraConfig, get_peft_model

    core: Any = model
    path = family_of(core.config).layers
    targets = [
        f"{path}.{layer}.{name}"
        for layer in layers
        for name, module in core.get_submodule(f"{path}.{layer}").named_modules()
        if isinstance(module, nn.Linear)
    ]
    if not targets:
        raise UnsupportedModelError("there are no linear projections to put adapters on; train without 'lora'")
    config = LoraConfig(
        task_type="CAUSAL_LM", target_modules=targets, r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about what peft asks it
        torch.manual_seed(seed)
        wrapped: nn.Module = get_peft_model(core, config)
    return wrapped


def merged(model: Any) -> Any:
    """The model with its adapters, if it has any, merged into its weights: an ordinary model, which replaces it."""
    merge = getattr(model, "merge_and_unload", None)
    if merge is None:
        return model
    with quiet_transformers():
        return merge()
