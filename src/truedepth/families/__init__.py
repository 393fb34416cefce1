"""What truedepth must know of a model family, as data: one TOML file a family, found by its file name.

A file says where a layer's attention and FFN branches are, as names of submodules of the decoder layer:
`before` is applied to the branch's input, then `module`, then `after`, all before the residual addition.
`[cannot]` names what the family cannot do, with the reason that a user is shown.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Literal

from truedepth.errors import UnsupportedModelError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

Ability = Literal["merge", "fuse", "checkpoint", "gguf", "split"]
"""What not every family can do: merged layers, groups as one wide layer, a plan written as a checkpoint or as a GGUF
file, and layers cut over several ranks. Every family can skip layers and run groups in both forms."""


@dataclass(frozen=True)
class Branch:
    """One residual branch of a decoder layer: names of its submodules, in the order in which they run."""

    before: tuple[str, ...]
    module: str
    after: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """Facts about one family. Paths are relative to the causal language model.

    Attributes:
        name: the family's file name.
        model_types: values of `config.model_type` that it covers.
        attention, ffn: the two branches of a layer.
        cannot: reasons, by ability.
        rotary_by_attention_type: whether the rotary embedding is asked for each attention type apart.
        same_input: projections inside a layer that are given the same input, where a layer has them.
        by_layer: entries of the configuration that are lists with one value a layer, where a configuration has them.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    name: str
    model_types: tuple[str, ...]
    attention: Branch
    ffn: Branch
    cannot: dict[Ability, str] = field(default_factory=dict)
    layers: str = "model.layers"
    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    rotary: str = "model.rotary_emb"
    rotary_by_attention_type: bool = False
    same_input: tuple[tuple[str, ...], ...] = (
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("mlp.gate_proj", "mlp.up_proj"),
    )
    by_layer: tuple[str, ...] = ("layer_types",)

    def decoder_layers(self, model: PreTrainedModel) -> list[nn.Module]:
        """The decoder layers of a causal language model, in order."""
        return list(model.get_submodule(self.layers).children())

    def require(self, ability: Ability) -> None:
        """Refuse what the family cannot do.

        Raises:
            UnsupportedModelError: with the reason, and the families that can.
        """
        if ability in self.cannot:
            able = [family.name for family in all_families() if ability not in family.cannot]
            raise UnsupportedModelError(
                f"family {self.name} cannot do '{ability}': {self.cannot[ability]}. "
                f"Families that can: {', '.join(able)}"
            )


@cache
def all_families() -> tuple[Family, ...]:
    """Every supported family, by name."""
    folder = files(__name__)
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".toml"))
    return tuple(_read(name.removesuffix(".toml"), (folder / name).read_text("utf-8")) for name in names)


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a model, by `config.model_type`.

    Raises:
        UnsupportedModelError: the family is unknown; the message lists those supported.
    """
    for family in all_families():
        if config.model_type in family.model_types:
            return family
    supported = ", ".join(model_type for family in all_families() for model_type in family.model_types)
    raise UnsupportedModelError(
        f"model type '{config.model_type}' is not supported; supported model types: {supported}. "
        "To add one, write its file in truedepth/families (see CONTRIBUTING)"
    )


def _read(name: str, text: str) -> Family:
    from pydantic import TypeAdapter

    return TypeAdapter(Family).validate_python({"name": name, **tomllib.loads(text)})
