"""Whether a token's numbers depend on how many tokens are computed with it.

Where they do not, a model is *batch-invariant*: verifying drafted tokens computes the very bits of decoding one by one.
Our own kernels sum in one order however many rows there are. Libraries choose another order for another shape, so that
two tokens that are nearly equally likely may change places.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from truedepth.engine.cpu.kernels import DTYPES, kernels
from truedepth.engine.runner.attention import HEAD_SIZES
from truedepth.families import Family
from truedepth.models.private_transformers import has_hooks
from truedepth.parallel.split import is_split

_NUMBERS_UNCHANGED = (nn.Identity, nn.Dropout)


def batch_variance(model: PreTrainedModel, family: Family) -> str | None:
    """Why an open engine's model is not batch-invariant, such as "products on cuda are PyTorch's"; None: it is.

    Args:
        model: with its weights packed, if they can be.
    """
    dtype = str(model.dtype).removeprefix("torch.")
    if model.device.type != "cpu":
        return f"products on {model.device.type} are PyTorch's"
    if model.dtype not in DTYPES:
        return f"products in {dtype} are PyTorch's"
    if kernels() is None:
        return "there is no C compiler for the engine's own kernels"
    if is_split(model):
        return "ranks add up their parts"
    config: Any = model.config.get_text_config()
    if getattr(config, "final_logit_softcapping", None):
        return "the cap of the logits is PyTorch's"
    parts = {"head": model.get_submodule(family.head), "final norm": model.get_submodule(family.final_norm)}
    parts |= {f"layer {index}": layer for index, layer in enumerate(family.decoder_layers(model))}
    return next((reason for name, part in parts.items() for reason in _reasons(name, part)), None)


def _reasons(name: str, part: nn.Module) -> Iterator[str]:
    for inner, module in part.named_modules():
        if not _is_ours(module):
            yield f"{name}'s {inner} ({type(module).__name__}) is PyTorch's" if inner else f"the {name} is PyTorch's"
        size = getattr(module, "head_dim", HEAD_SIZES)
        if isinstance(size, int) and size % HEAD_SIZES:
            yield f"attention is PyTorch's, for heads of {size} are no multiple of {HEAD_SIZES}"


def _is_ours(module: nn.Module) -> bool:
    """Whether a module by itself, its children apart, computes each row in the same way among any others."""
    if has_hooks(module):
        return False
    if "forward" in vars(module):
        forward = vars(module)["forward"]
        return str(getattr(forward, "func", forward).__module__).startswith("truedepth.")
    if isinstance(module, _NUMBERS_UNCHANGED):
        return True
    if any(True for _ in module.parameters(recurse=False)):
        return False
    is_container = "forward" not in vars(type(module)) and not any(module.children())
    return is_container or any(module.children())
