"""A model that runs without being loaded: each module's weights are read when it runs, and dropped after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from truedepth.models.private_transformers import init_module

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedConfig, PreTrainedModel

    from truedepth.models.fuse import Read


def streamed_model(config: PreTrainedConfig, read: Read) -> PreTrainedModel:
    """The causal language model of a configuration, in float32, with one module's weights in memory at a time.

    Args:
        read: gives a parameter by its name in the model; tied ones by their first name.
    """
    from truedepth.models.loading.load import blank_model

    model: PreTrainedModel = blank_model(config)
    model.eval()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for module in model.modules():
        make_buffers(model, module)
        own = {name: names[id(parameter)] for name, parameter in module.named_parameters(recurse=False)}
        if own:
            module.register_forward_pre_hook(_loader(own, read))
            module.register_forward_hook(_dropper(dict(module.named_parameters(recurse=False))))
    return model


def _loader(own: dict[str, str], read: Read) -> Callable[[nn.Module, Any], None]:
    def load(module: nn.Module, _: Any) -> None:
        for name, source in own.items():
            module.register_parameter(name, nn.Parameter(read(source).float(), requires_grad=False))

    return load


def _dropper(blank: dict[str, nn.Parameter]) -> Callable[[nn.Module, Any, Any], None]:
    def drop(module: nn.Module, _: Any, __: Any) -> None:
        for name, parameter in blank.items():
            module.register_parameter(name, parameter)

    return drop


def make_buffers(model: PreTrainedModel, module: nn.Module) -> None:
    """Compute what no checkpoint holds, such as rotary frequencies, as transformers does after loading."""
    buffers = dict(module.named_buffers(recurse=False, remove_duplicate=False))
    if any(buffer.is_meta for buffer in buffers.values()):
        for name, buffer in buffers.items():
            setattr(module, name, torch.empty_like(buffer, device="cpu"))
        init_module(model, module)
