"""Which architecture of llama.cpp a fused model is, and under which name each of its tensors stands in the file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from truedepth.errors import UnsupportedModelError
from truedepth.models.gguf.architectures import MIXED_WIDTHS, Architecture, architecture_for
from truedepth.models.gguf.rotary import ROTARY_TENSORS
from truedepth.models.gguf.weights import ROTATED, tensor_names, to_pairs

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig

    from truedepth.families import Family
    from truedepth.models.fuse import WideLayer

_BLOCK = re.compile(r"blk\.\d+\.(\w+)\.(weight|bias)")


@dataclass(frozen=True)
class Layout:
    """The architecture of a file and the widths of its blocks.

    Attributes:
        architecture: llama.cpp's name for it.
        facts: about it.
        heads, kv_heads, intermediate: one entry a block.
        family: of the source.
    """

    architecture: str
    facts: Architecture
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    intermediate: tuple[int, ...]
    family: Family

    @property
    def mixed(self) -> bool:
        """Whether blocks differ in width."""
        return any(len(set(widths)) > 1 for widths in (self.heads, self.kv_heads, self.intermediate))

    def block(self, index: int, layer: WideLayer) -> Iterator[tuple[str, Tensor]]:
        """A block's tensors by their names in the file, in llama.cpp's order of rows."""
        full = {f"{self.family.layers}.{index}.{name}": tensor for name, tensor in layer.tensors.items()}
        for name, tensor in self._named(full):
            rotated = ROTATED.fullmatch(name)
            if rotated and self.facts.interleaved_rotary:
                tensor = to_pairs(tensor, layer.heads if rotated[1] == "q" else layer.kv_heads)
            yield name, tensor

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
        why = f"llama.cpp's architecture '{self.architecture}' has no place for '{name}' of a {self.family.name} model"
        if self.architecture == MIXED_WIDTHS[0]:
            why += (
                f", and its architecture '{self.family.name}' none for layers of different widths; use a plan that only "
                "skips layers (or one whose stages are all equally wide), or export the wide layers with "
                "'truedepth export hf'"
            )
        else:
            why += "; export the model for another engine with 'truedepth export hf'"
        return UnsupportedModelError(why)

    def require_rotary(self, tensors: Iterable[str]) -> None:
        """Refuse rotary factors that the architecture does not read.

        Raises:
            UnsupportedModelError: it would refuse the whole file.
        """
        import gguf

        numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
        places = {gguf.TENSOR_NAMES[kind] for kind in gguf.MODEL_TENSORS[numbers[self.architecture]]}
        for name in tensors:
            assert name in ROTARY_TENSORS, name
            if name.removesuffix(".weight") not in places:
                raise self._no_place(name)


def layout_of(config: PreTrainedConfig, family: Family, layers: list[WideLayer]) -> Layout:
    """How a model of these layers is laid out: as its own architecture where they are equally wide, else as `deci`.

    Raises:
        UnsupportedModelError: llama.cpp has no architecture for it.
    """
    family.require("gguf")
    _require_silu(config)
    widths = tuple(zip(*((layer.heads, layer.kv_heads, layer.intermediate) for layer in layers), strict=True))
    equal = all(len(set(entries)) == 1 for entries in widths)
    name, facts = architecture_for(config.model_type) if equal else MIXED_WIDTHS
    layout = Layout(name, facts, *widths, family=family)
    _require_positions(config, layers, layout)
    return layout


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
                f"{'has none' if expected else 'has'}; use a plan that keeps layers at their places in fours, or "
                "export the model with 'truedepth export hf'"
            )
