"""What the family files say is true of the models they describe."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from torch import nn
from transformers import AutoConfig, GPT2Config

import truedepth.models.modeling_truedepth  # noqa: F401  (makes transformers know the types of wide checkpoints)
from truedepth.errors import UnsupportedModelError
from truedepth.families import Family, all_families, family_of

SUPPORTED = {
    "gemma2",
    "gemma3",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "smollm3",
}


def test_all_families() -> None:
    families = all_families()
    assert [family.name for family in families] == sorted(SUPPORTED)
    model_types = [model_type for family in families for model_type in family.model_types]
    assert len(set(model_types)) == len(model_types)


def test_family_is_found_by_model_type() -> None:
    for family in all_families():
        for model_type in family.model_types:
            assert family_of(AutoConfig.for_model(model_type)) is family


def test_unknown_model_type_is_refused_with_those_supported() -> None:
    with pytest.raises(UnsupportedModelError, match="model type 'gpt2' is not supported") as refusal:
        family_of(GPT2Config())
    for name in SUPPORTED - {"gemma3"} | {"gemma3_text"}:
        assert re.search(rf"\b{name}\b", str(refusal.value))


def test_every_module_of_a_layer_is_in_one_branch(family_name: str, tiny_model: Any) -> None:
    """A norm that the file forgets would be left out of every group."""
    model = tiny_model(family_name)
    family = family_of(model.config)
    assert family.name == family_name
    named = [
        name for branch in (family.attention, family.ffn) for name in (*branch.before, branch.module, *branch.after)
    ]
    for layer in family.decoder_layers(model):
        assert sorted(named) == sorted(name for name, _ in layer.named_children())


def test_paths_lead_to_the_models_parts(family_name: str, tiny_model: Any) -> None:
    model = tiny_model(family_name)
    family = family_of(model.config)
    assert family.decoder_layers(model) == list(model.model.layers)
    assert model.get_submodule(family.embedding) is model.get_input_embeddings()
    assert model.get_submodule(family.head) is model.get_output_embeddings()
    assert isinstance(model.get_submodule(family.final_norm), nn.Module)
    outside = {name.split(".")[1] for name, _ in model.named_parameters() if name.startswith("model.")}
    assert outside == {path.split(".")[1] for path in (family.layers, family.embedding, family.final_norm)}


@pytest.mark.parametrize("name", sorted(SUPPORTED))
def test_what_a_family_cannot_do_is_refused_with_those_that_can(name: str) -> None:
    family: Family = next(family for family in all_families() if family.name == name)
    if name in ("mixtral", "qwen3_moe"):
        with pytest.raises(
            UnsupportedModelError, match=rf"family {name} cannot do 'merge': .*Families that can: "
        ) as no:
            family.require("merge")
        able = str(no.value).split("Families that can: ")[1].split(", ")
        assert able == sorted(SUPPORTED - {"mixtral", "qwen3_moe"})
    else:
        family.require("merge")


def test_the_reason_is_in_the_refusal() -> None:
    family = replace(all_families()[0], name="odd", cannot={"merge": "its halves are one"})
    with pytest.raises(UnsupportedModelError, match="family odd cannot do 'merge': its halves are one"):
        family.require("merge")
