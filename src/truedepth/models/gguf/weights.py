"""The tensors of a GGUF file as the state dict of a transformers model."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from truedepth.errors import ModelLoadError, UnsupportedModelError
from truedepth.models.gguf.architectures import Architecture, architecture_of
from truedepth.models.gguf.rotary import ROTARY_TENSORS
from truedepth.models.wording import listed

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

    from truedepth.models.gguf.file import GgufFile

EXPERTS = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(gate_up_proj|down_proj)")
EXPERT_TENSORS = {"gate_up_proj": ("ffn_gate_exps", "ffn_up_exps"), "down_proj": ("ffn_down_exps",)}
ROTATED = re.compile(r"blk\.\d+\.attn_([qk])\.(weight|bias)")


def state_dict_of(
    file: GgufFile, config: PreTrainedConfig, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Every parameter of the model, dequantised one by one to float32 and cast to `dtype`.

    Args:
        shapes: the model's parameters by name, tied ones once.

    Raises:
        ModelLoadError: tensors are missing or have another shape than the model's.
        UnsupportedModelError: the file holds tensors that the model has no place for.
    """
    facts = architecture_of(file)
    sources = tensor_names(file.architecture, config.num_hidden_layers, list(shapes))
    _check_names(file, sources)
    state: dict[str, torch.Tensor] = {}
    for name, stored in sources.items():
        state[name] = _tensor(file, stored, facts, config).to(dtype)
        if state[name].shape != shapes[name]:
            raise ModelLoadError(
                f"tensor '{stored[0]}' of {file.path} has the shape {tuple(state[name].shape)}, but the "
                f"metadata ask for {shapes[name]}; download the file again, or convert the model again"
            )
    return state


def tensor_names(architecture: str, num_layers: int, names: list[str]) -> dict[str, tuple[str, ...]]:
    """The GGUF tensors that make up each transformers parameter: one, or gate and up of all experts."""
    import gguf

    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    known = gguf.get_tensor_name_map(numbers[architecture], num_layers)
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        if experts := EXPERTS.fullmatch(name):
            found[name] = tuple(f"blk.{experts[1]}.{part}.weight" for part in EXPERT_TENSORS[experts[2]])
        else:
            # A name that gguf-py does not know is looked for under its own name, and reported as missing.
            found[name] = (known.get_name(name, try_suffixes=(".weight", ".bias")) or name,)
    return found


def _check_names(file: GgufFile, sources: dict[str, tuple[str, ...]]) -> None:
    wanted = {stored for names in sources.values() for stored in names}
    missing = sorted(wanted - set(file.tensors))
    if missing:
        raise ModelLoadError(
            f"{file.path} lacks {len(missing)} of the model's tensors: {listed(missing)}; "
            "download it again, or convert the model again"
        )
    extra = sorted(set(file.tensors) - wanted - set(ROTARY_TENSORS))
    if extra:
        raise UnsupportedModelError(
            f"{file.path} holds {len(extra)} tensors that a {file.architecture} model in transformers has no "
            f"place for: {listed(extra)}; give the model's hub id or folder"
        )


def _tensor(file: GgufFile, stored: tuple[str, ...], facts: Architecture, config: PreTrainedConfig) -> torch.Tensor:
    """One parameter in float32."""
    import torch

    parts = [torch.from_numpy(file.read(name)) for name in stored]
    # Gate and up of the experts: (experts, width, hidden) each, stacked to (experts, 2 * width, hidden).
    tensor = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    rotated = ROTATED.fullmatch(stored[0])
    if facts.interleaved_rotary and rotated:
        heads = config.num_attention_heads if rotated[1] == "q" else config.num_key_value_heads
        tensor = _halves(tensor, heads)
    if facts.norm_offset and stored[0].endswith("norm.weight"):
        tensor = tensor - facts.norm_offset
    return tensor


def _halves(interleaved: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of q or k from llama.cpp's rotary layout (pairs of neighbours) to transformers' (two halves)."""
    head_dim = interleaved.shape[0] // heads
    pairs = interleaved.reshape(heads, head_dim // 2, 2, *interleaved.shape[1:])
    return pairs.transpose(1, 2).reshape(interleaved.shape)
