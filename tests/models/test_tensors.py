"""Checkpoints read tensor by tensor hold the model that loads, however their tensors are named and stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from truedepth.errors import ModelLoadError, UnsupportedModelError
from truedepth.models.loading.load import load
from truedepth.models.loading.source import open_source

Make = Callable[..., Any]
Tensors = dict[str, Tensor]
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def flat(tensors: Tensors) -> Tensors:
    """As saved from the model without its head."""
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def own_head(tensors: Tensors) -> Tensors:
    return {**tensors, HEAD: tensors[EMBEDDING] + torch.linspace(0, 1, len(tensors[EMBEDDING]))[:, None]}


LAYOUTS: dict[str, Callable[[Tensors], Tensors]] = {
    "named as in the model": dict,
    "saved without the head": flat,
    "a head of its own": own_head,
    "a head of its own, beside flat names": lambda tensors: flat(own_head(tensors)),
    "a head that differs in one number": lambda tensors: {
        **tensors,
        HEAD: tensors[EMBEDDING].index_put((torch.tensor(-1), torch.tensor(-1)), torch.tensor(9.0)),
    },
    "a head equal to the embedding": lambda tensors: {**tensors, HEAD: tensors[EMBEDDING].clone()},
    "the head in the place of the embedding": lambda tensors: {
        HEAD if name == EMBEDDING else name: tensor for name, tensor in tensors.items()
    },
    "each tensor twice": lambda tensors: {**{name: tensor + 1 for name, tensor in tensors.items()}, **flat(tensors)},
    "old buffers, and tensors of no use": lambda tensors: {
        **tensors,
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4),
        "model.layers.9.mlp.up_proj.weight": torch.zeros(4, 4),
    },
    "norms in float32, the rest in bfloat16": lambda tensors: {
        name: tensor if "norm" in name else tensor.bfloat16() for name, tensor in tensors.items()
    },
}


def written(folder: Path, change: Callable[[Tensors], Tensors], shards: int = 1) -> str:
    """The checkpoint in `folder` with other tensors, in some files."""
    tensors = {name: tensor.contiguous() for name, tensor in change(load_file(folder / "model.safetensors")).items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return str(folder)
    (folder / "model.safetensors").unlink()
    files = {name: f"part-{number % shards}.safetensors" for number, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": files | {"model.layers.77.absent.weight": "part-0.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return str(folder)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_that_load_also_open(layout: str, checkpoint: Make) -> None:
    for family, shards in (("llama", 1), ("qwen3", 2)):
        folder = checkpoint(family, tie_word_embeddings=True, max_shard_size="1GB")
        name = written(folder, LAYOUTS[layout], shards)
        loaded, source = load(name, dtype="float32", device="cpu").model, open_source(name, "checkpoint")
        parameters = dict(loaded.named_parameters())
        assert set(parameters) == set(source.blank)
        assert loaded.config.tie_word_embeddings == source.config.tie_word_embeddings == (HEAD not in source.blank)
        for parameter, tensor in parameters.items():
            assert tensor.equal(source.read(parameter).float()), parameter


def test_a_head_of_its_own_stays_apart(checkpoint: Make, tmp_path: Path, token_ids: Make) -> None:
    """Whatever ties weights by the configuration, such as saving, training or a larger vocabulary, leaves it."""
    loaded = load(written(checkpoint("llama", tie_word_embeddings=True), own_head)).model
    with torch.no_grad():
        expected = loaded(token_ids(1, 9)).logits
        loaded.tie_weights()
        assert loaded(token_ids(1, 9)).logits.equal(expected)


@pytest.mark.parametrize("lost", [HEAD, EMBEDDING])
def test_what_is_missing_is_missed_everywhere(lost: str, checkpoint: Make) -> None:
    """An untied head, or the embedding of a tied one: transformers would fill it with random numbers."""

    def without(tensors: Tensors) -> Tensors:
        return flat({name: tensor for name, tensor in tensors.items() if name != lost})

    name = written(checkpoint("llama", tie_word_embeddings=lost == EMBEDDING), without)
    with pytest.raises(ModelLoadError, match=f"lack 1 of the model's tensors: {lost}"):
        open_source(name, "checkpoint")
    with pytest.raises(ModelLoadError, match=r"lack . of the model's tensors"):
        load(name)


def test_another_shape_is_refused_by_the_name_in_the_file(checkpoint: Make) -> None:
    name = written(
        checkpoint("llama", tie_word_embeddings=True), lambda tensors: flat(tensors) | {"norm.weight": torch.ones(3)}
    )
    with pytest.raises(ModelLoadError, match=r"tensor norm\.weight .* has the shape \(3,\)"):
        open_source(name, "checkpoint")


@pytest.mark.parametrize(("dtype", "name"), [(torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8")])
def test_codes_of_a_quantiser_are_no_weights(dtype: torch.dtype, name: str, checkpoint: Make) -> None:
    """Their scales would be ignored; the configuration need not say that there are some."""
    code = "model.layers.1.mlp.up_proj.weight"
    folder = written(
        checkpoint(), lambda tensors: tensors | {code: tensors[code].to(dtype), f"{code}_scale": torch.ones(1)}
    )
    for read in (load, lambda source: open_source(source, "checkpoint")):
        with pytest.raises(UnsupportedModelError, match=f"are quantised: {code} is stored as {name}"):
            read(folder)
