"""The tensors of a GGUF file as the state dict of a transformers model."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from truedepth.errors import ModelLoadError, UnsupportedModelError
from truedepth.models.gguf.architectures import Architecture, architecture_of
from truedepth.models.gguf.rotary import ROTARY_TENSORS
from truedepth.records.messages import listed

if TYPE_CHECKING:
    import torch
    from gguf import TensorNameMap
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
    read = tensor_reader(file, config, shapes)
    return {name: read(name).to(dtype) for name in shapes}


def tensor_reader(
    file: GgufFile, config: PreTrainedConfig, shapes: dict[str, tuple[int, ...]]
) -> Callable[[str], torch.Tensor]:
    """What reads the model's parameters one by one: by their names in transformers, dequantised to float32.

    Raises:
        ModelLoadError, UnsupportedModelError: see `check_tensors`.
    """
    facts = architecture_of(file)
    sources = check_tensors(file, config, shapes)
    return lambda name: _tensor(file, sources[name], facts, config)


def check_tensors(
    file: GgufFile, config: PreTrainedConfig, shapes: dict[str, tuple[int, ...]]
) -> dict[str, tuple[str, ...]]:
    """Make sure that a file holds just the parameters of a model, by its header; returns the tensors of each.

    Raises:
        ModelLoadError: tensors are missing, or one has another shape than the model's.
        UnsupportedModelError: the file holds tensors that the model has no place for.
    """
    sources = tensor_names(file.architecture, config.num_hidden_layers, list(shapes))
    _check_names(file, sources)
    for name, stored in sources.items():
        found = [file.tensors[part].shape for part in stored]
        # Gate and up of the experts are stacked.
        shape = found[0] if len(found) == 1 else (*found[0][:1], sum(part[1] for part in found), *found[0][2:])
        if shape != shapes[name]:
            raise ModelLoadError(
                f"tensor '{stored[0]}' of {file.path} has the shape {shape}, but the "
                f"metadata ask for {shapes[name]}; download the file again, or convert the model again"
            )
    return sources


def tensor_names(architecture: str, num_layers: int, names: list[str]) -> dict[str, tuple[str, ...]]:
    """The GGUF tensors that make up each transformers parameter: one, or gate and up of all experts."""
    known = _name_map(architecture, num_layers)
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        if experts := EXPERTS.fullmatch(name):
            found[name] = tuple(f"blk.{experts[1]}.{part}.weight" for part in EXPERT_TENSORS[experts[2]])
        else:
            # A name that gguf-py does not know is looked for under its own name, and reported as missing.
            found[name] = (known.get_name(name, try_suffixes=(".weight", ".bias")) or name,)
    return found


@functools.cache
def _name_map(architecture: str, num_layers: int) -> TensorNameMap:
    """gguf-py's names; making them takes longer than reading a layer."""
    import gguf

    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    return gguf.get_tensor_name_map(numbers[architecture], num_layers)


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
        tensor = from_pairs(tensor, heads)
    if facts.norm_offset and stored[0].endswith("norm.weight"):
        tensor = tensor - facts.norm_offset
    return tensor


def from_pairs(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of q or k from llama.cpp's interleaved rotary layout (pairs of neighbours) to transformers' (two halves)."""
    split = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return split.transpose(1, 2).reshape(rows.shape)


def to_pairs(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """The inverse of `from_pairs`."""
    split = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return split.transpose(1, 2).reshape(rows.shape)
