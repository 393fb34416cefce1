"""A model that runs without being loaded: each module's weights are read when it runs, and dropped after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

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
            module._parameters[name] = nn.Parameter(read(source).float(), requires_grad=False)

    return load


def _dropper(blank: dict[str, nn.Parameter]) -> Callable[[nn.Module, Any, Any], None]:
    def drop(module: nn.Module, _: Any, __: Any) -> None:
        module._parameters.update(blank)

    return drop


def make_buffers(model: PreTrainedModel, module: nn.Module) -> None:
    """Compute what no checkpoint holds, such as rotary frequencies, as transformers does after loading."""
    buffers: dict[str, Tensor | None] = module._buffers
    if any(buffer is not None and buffer.is_meta for buffer in buffers.values()):
        for name, buffer in buffers.items():
            if buffer is not None:
                buffers[name] = torch.empty_like(buffer, device="cpu")
        model._init_weights(module)
