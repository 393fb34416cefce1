"""A GGUF file as a transformers model that can be used and saved like any other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from truedepth.errors import ModelLoadError
from truedepth.models.gguf.tokenizer import special_token
from truedepth.models.gguf.weights import state_dict_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

    from truedepth.models.gguf.file import GgufFile


def model_of(file: GgufFile, config: PreTrainedConfig, blank: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The causal language model in a GGUF file, dequantised, on the CPU, in eval mode.

    Args:
        config: what `config_of` says of the file.
        blank: the same model on the meta device.

    Raises:
        ModelLoadError: tensors are missing or have the wrong shape.
        UnsupportedModelError: the file holds what the model has no place for, or cannot be dequantised.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in blank.named_parameters()}
    state = state_dict_of(file, config, shapes, dtype)
    # Without a checkpoint, `from_pretrained` takes the tensors of a state dict as they are, uncopied.
    model_class: Any = type(blank)
    model, info = model_class.from_pretrained(
        None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
    )
    if missing := sorted(info["missing_keys"]):
        raise ModelLoadError(f"{file.path} leaves weights of the model empty: {', '.join(missing)}")
    ends = ends_of_text(file)
    if model.generation_config is not None and len(ends) > 1:
        model.generation_config.eos_token_id = ends
    loaded: PreTrainedModel = model
    return loaded


def ends_of_text(file: GgufFile) -> list[int]:
    """The tokens that stop generation: chat models may end a turn with another than the text."""
    ids = [special_token(file, f"{name}_token_id") for name in ("eos", "eot")]
    return sorted({token for token in ids if token is not None})
