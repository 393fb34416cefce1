"""Loading checkpoints from folders, and what a loaded model is like."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import truedepth
from truedepth.errors import ModelLoadError, UsageError
from truedepth.models.loading.load import load

Make = Callable[..., Any]


def test_a_folder_loads_to_the_model_that_was_saved(checkpoint: Make, tiny_model: Make, token_ids: Make) -> None:
    import torch

    folder = checkpoint("llama")
    loaded = truedepth.load(str(folder))
    ids = token_ids(2, 12)
    with torch.no_grad():
        assert loaded.model(ids).logits.equal(tiny_model("llama")(ids).logits)
    assert loaded.name == str(folder) == loaded.model.name_or_path
    assert not loaded.model.training
    assert loaded.tokenizer.decode(loaded.tokenizer("the fox").input_ids) == "the fox"


def test_every_family_loads(family_name: str, checkpoint: Make) -> None:
    assert load(str(checkpoint(family_name))).model.config.num_hidden_layers == 6


def test_sharded_weights_load(checkpoint: Make, tiny_model: Make, token_ids: Make) -> None:
    import torch

    folder = checkpoint("qwen3", max_shard_size="50KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    ids = token_ids(1, 12)
    with torch.no_grad():
        assert load(str(folder)).model(ids).logits.equal(tiny_model("qwen3")(ids).logits)


def test_a_loaded_model_generates_from_padded_batches(checkpoint: Make) -> None:
    loaded = load(str(checkpoint("llama")))
    batch = loaded.tokenizer(["the", "the quick fox"], padding=True, return_tensors="pt")
    assert batch.attention_mask[0].tolist()[0] == 0, "padding goes to the left"
    together = loaded.model.generate(**batch, max_new_tokens=6, do_sample=False)
    alone = loaded.tokenizer("the", return_tensors="pt")
    single = loaded.model.generate(**alone, max_new_tokens=6, do_sample=False)
    length = single.shape[1] - alone.input_ids.shape[1]
    assert together[0, batch.input_ids.shape[1] :][:length].equal(single[0, alone.input_ids.shape[1] :])


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path: Path, tiny_model: Make, tiny_tokenizer: Make) -> None:
    tiny_model("llama", pad_token_id=None).save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    loaded = load(str(tmp_path))
    assert loaded.tokenizer.pad_token == loaded.tokenizer.eos_token == "</s>"
    assert loaded.model.generation_config.pad_token_id == 2


@pytest.mark.parametrize(("dtype", "expected"), [("auto", "float32"), ("bfloat16", "bfloat16")])
def test_dtype(dtype: str, expected: str, checkpoint: Make) -> None:
    import torch

    loaded = load(str(checkpoint("llama")), dtype=dtype, device="cpu")
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {getattr(torch, expected)}


def test_unknown_dtype_and_device_are_usage_errors(checkpoint: Make) -> None:
    folder = str(checkpoint("llama"))
    with pytest.raises(UsageError, match="unknown dtype 'float8'; choose one of: auto, float32"):
        load(folder, dtype="float8")
    with pytest.raises(UsageError, match=r"unknown device 'gpu'; choose one of: auto, .*cpu"):
        load(folder, device="gpu")
    with pytest.raises(UsageError, match=r"device '(xpu|cuda:77)' is not available here"):
        load(folder, device="xpu")
    with pytest.raises(UsageError, match="device 'cuda:77' is not available here"):
        load(folder, device="cuda:77")


def test_a_path_may_start_at_home(checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint("llama")
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    assert load("~/llama").name == "~/llama"


def test_a_path_may_be_relative(
    checkpoint: Make, tiny_model: Make, write_gguf: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, file = checkpoint("llama"), write_gguf(tiny_model("llama"))
    monkeypatch.chdir(folder.parent)
    for source in (folder.name, file.name, f"./{file.name}"):
        assert load(source).name == source
    monkeypatch.chdir(folder)
    assert load(".").tokenizer.eos_token == "</s>"


def test_loading_is_silent_and_leaves_transformers_as_it_was(
    checkpoint: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging

    folder = checkpoint("llama")
    before = (logging.get_verbosity(), logging.is_progress_bar_enabled(), are_progress_bars_disabled())
    capfd.readouterr()
    load(str(folder))
    assert capfd.readouterr() == ("", "")
    assert (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        are_progress_bars_disabled(),
    ) == before

    (folder / "config.json").write_text("{")
    with pytest.raises(ModelLoadError):
        load(str(folder))
    assert (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        are_progress_bars_disabled(),
    ) == before


@pytest.mark.parametrize("source", ["./nowhere", "../no/where", "/no/such/model", "~/nothing", "missing.gguf"])
def test_paths_that_do_not_exist(source: str) -> None:
    with pytest.raises(ModelLoadError, match=r"there is no file or folder '.*smollm2-135m"):
        load(source)


def test_an_empty_name() -> None:
    with pytest.raises(UsageError, match="no model"):
        load("")


@pytest.mark.parametrize("source", ["smollm2-135", "SmolLM2-135M", "smollm2_135m", "smolm2-135m"])
def test_a_misspelt_embedded_name_is_told_the_right_one(source: str) -> None:
    with pytest.raises(ModelLoadError, match="did you mean the embedded model 'smollm2-135m'"):
        load(source)


def test_files_that_are_not_models(tmp_path: Path) -> None:
    for name, message in (
        ("model.safetensors", "give the folder that holds it"),
        ("notes.txt", "cannot load"),
    ):
        (tmp_path / name).write_bytes(b"something")
        with pytest.raises(ModelLoadError, match=message):
            load(str(tmp_path / name))


def test_a_folder_of_an_embedded_name_is_reached_by_its_path(checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint("llama")
    os.rename(folder, folder.with_name("smollm2-135m"))
    monkeypatch.chdir(folder.parent)
    assert load("./smollm2-135m").model.config.hidden_size == 32
