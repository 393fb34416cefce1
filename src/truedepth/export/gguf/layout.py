"""Which architecture of llama.cpp a fused model is, and under which name each of its tensors stands in the file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from truedepth.errors import UnsupportedModelError
from truedepth.models.gguf.architectures import MIXED_WIDTHS, MIXED_WIDTHS_FACTS, Architecture, architecture_for
from truedepth.models.gguf.weights import ROTATED, tensor_names, to_pairs

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig

    from truedepth.families import Family
    from truedepth.models.fuse import WideLayer

PARTIAL_ROTARY = "phi3"
"""The architecture, and the model type, that rotates a part of each head."""
_BLOCK = re.compile(r"blk\.\d+\.(\w+)\.(weight|bias)")


@dataclass(frozen=True)
class Layout:
    """The architecture of a file and the widths of its blocks.

    Attributes:
        architecture: llama.cpp's name for it.
        facts: about it.
        heads, kv_heads, intermediate: one entry a block.
        head_dim: numbers in one head.
        family: of the source.
    """

    architecture: str
    facts: Architecture
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    intermediate: tuple[int, ...]
    head_dim: int
    family: Family

    @property
    def mixed(self) -> bool:
        """Whether widths stand in arrays, one entry a block."""
        return self.architecture == MIXED_WIDTHS

    def block(self, index: int, layer: WideLayer) -> Iterator[tuple[str, Tensor]]:
        """A block's tensors by their names in the file, in llama.cpp's order of rows."""
        tensors = self._unpacked(layer) if self.mixed else layer.tensors
        full = {f"{self.family.layers}.{index}.{name}": tensor for name, tensor in tensors.items()}
        for name, tensor in self._named(full):
            rotated = ROTATED.fullmatch(name)
            if rotated and self.facts.interleaved_rotary:
                yield name, to_pairs(tensor, layer.heads if rotated[1] == "q" else layer.kv_heads)
            else:
                yield name, tensor

    def _unpacked(self, layer: WideLayer) -> dict[str, Tensor]:
        """The layer with Phi-3's packed projections apart, as `deci` wants them."""
        rows = [heads * self.head_dim for heads in (layer.heads, layer.kv_heads, layer.kv_heads)]
        packed = {
            "self_attn.qkv_proj.weight": dict(zip(("q", "k", "v"), rows, strict=True)),
            "mlp.gate_up_proj.weight": dict.fromkeys(("gate", "up"), layer.intermediate),
        }
        tensors: dict[str, Tensor] = {}
        for name, tensor in layer.tensors.items():
            parts = packed.get(name, {})
            branch = name.rpartition(".")[0].rpartition(".")[0]
            for part, piece in zip(parts, tensor.split(list(parts.values())) if parts else (), strict=True):
                tensors[f"{branch}.{part}_proj.weight"] = piece
            if not parts:
                tensors[name] = tensor
        return tensors

    def outside(self, tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The same for what is around the blocks."""
        yield from self._named(tensors)

    def _named(self, tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        names = tensor_names(self.architecture, len(self.heads), list(tensors))
        for name, tensor in tensors.items():
            (stored,) = names[name]
            block = _BLOCK.fullmatch(stored)
            if stored == name or (block and block[2] == "bias" and block[1] not in self.facts.biases):
                raise self._no_place(name)
            yield stored, tensor

    def _no_place(self, name: str) -> UnsupportedModelError:
        why = (
            f"llama.cpp's architecture '{self.architecture}' has no place for '{name}' of this {self.family.name} model"
        )
        if self.architecture == MIXED_WIDTHS:
            why += (
                f", and its architecture '{self.family.name}' none for layers of such widths; use a plan that "
                "only skips layers, or export the wide layers with 'truedepth export hf'"
            )
        else:
            why += "; export the model for another engine with 'truedepth export hf'"
        return UnsupportedModelError(why)

    def require_rotary(self, tensors: Iterable[str]) -> None:
        """Refuse rotary factors that the architecture does not read.

        Raises:
            UnsupportedModelError: it would refuse the whole file.
        """
        for name in tensors:
            if name not in self.facts.rotary_tensors:
                raise self._no_place(name)


def head_dim_of(config: PreTrainedConfig) -> int:
    """Numbers in one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def layout_of(config: PreTrainedConfig, family: Family, layers: list[WideLayer]) -> Layout:
    """How a model of these layers is laid out: as its own architecture where they are equally wide, else as `deci`.

    Raises:
        UnsupportedModelError: llama.cpp has no architecture for it.
    """
    _require_silu(config)
    widths = tuple(zip(*((layer.heads, layer.kv_heads, layer.intermediate) for layer in layers), strict=True))
    name, facts = architecture_for(family.model_types[0])
    equal = all(len(set(entries)) == 1 for entries in widths)
    wider = any(layer.heads != config.num_attention_heads for layer in layers)
    other = any(layer.heads * head_dim_of(config) != config.hidden_size for layer in layers)
    if not equal or (wider and not facts.wide) or (other and facts.square):
        name, facts = MIXED_WIDTHS, MIXED_WIDTHS_FACTS
    _require_whole_rotary(config, name)
    heads, kv_heads, intermediate = widths
    layout = Layout(name, facts, heads, kv_heads, intermediate, head_dim_of(config), family)
    _require_positions(config, layers, layout)
    return layout


def _require_whole_rotary(config: PreTrainedConfig, architecture: str) -> None:
    share = config.rope_parameters.get("partial_rotary_factor", 1.0)
    if share != 1.0 and architecture != PARTIAL_ROTARY:
        otherwise = "a plan that only skips layers, or " if config.model_type == PARTIAL_ROTARY else ""
        raise UnsupportedModelError(
            f"the model's configuration rotates {share:.0%} of each head, but llama.cpp's architecture "
            f"'{architecture}' all of it; use {otherwise}'truedepth export hf'"
        )


def _require_silu(config: PreTrainedConfig) -> None:
    if (activation := config.hidden_act) not in ("silu", "swish"):
        raise UnsupportedModelError(
            f"the model's activation is '{activation}', but llama.cpp computes '{config.model_type}' models with 'silu'"
        )


NO_ROPE_EVERY = 4
"""llama.cpp leaves rotary embedding out of every fourth block of SmolLM3."""


def _require_positions(config: PreTrainedConfig, layers: list[WideLayer], layout: Layout) -> None:
    """Refuse layers without rotary embedding where llama.cpp would give them one, and the other way round."""
    rotary = getattr(config, "no_rope_layers", None)  # 1 for a layer that has it, in spite of the name
    if not rotary:
        return
    for block, layer in enumerate(layers):
        expected = layout.mixed or (block + 1) % NO_ROPE_EVERY != 0
        if wrong := [index for index in layer.layers if bool(rotary[index]) != expected]:
            raise UnsupportedModelError(
                f"llama.cpp tells by a block's number whether it has rotary embedding: block {block} "
                f"{'has' if expected else 'has none'}, but layer {wrong[0]}, which the plan puts there, "
                f"{'has none' if expected else 'has'}; use a plan that keeps layers at their positions in fours, or "
                "export the model with 'truedepth export hf'"
            )
