"""Models of the hub, without a network: what is asked of the hub's library, and what its failures become."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from truedepth.errors import ModelLoadError, UnsupportedModelError
from truedepth.models.loading.cached import cached_models
from truedepth.models.loading.load import load

Make = Callable[..., Any]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[list[str]]]:
    """`hub(folder_or_error)` answers downloads; returns the patterns asked for, one entry a download."""

    def answer_with(answer: Any) -> list[list[str]]:
        asked: list[list[str]] = []

        def snapshot_download(name: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
            asked.append(allow_patterns)
            if isinstance(answer, Exception):
                raise answer
            return str(answer)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return asked

    return answer_with


def response_error(kind: type[Exception]) -> Exception:
    """An error as the hub's library raises it, which wants a response."""
    error = kind.__new__(kind)
    error.args = ("403 Forbidden",)
    return error


def test_a_hub_id_loads_from_the_folder_it_was_fetched_to(hub: Any, checkpoint: Make) -> None:
    asked = hub(checkpoint("llama"))
    loaded = load("owner/tiny-llama")
    assert loaded.name == loaded.model.name_or_path == "owner/tiny-llama"
    assert asked[0] == ["config.json", "adapter_config.json"]
    assert "*.safetensors" in asked[1]
    assert not any(pattern.endswith(("bin", "pt", "py")) for patterns in asked for pattern in patterns)


def test_code_is_fetched_only_when_trusted(hub: Any, checkpoint: Make) -> None:
    asked = hub(checkpoint("llama"))
    load("owner/tiny-llama", trust_remote_code=True)
    assert all("*.py" in patterns for patterns in asked)


def test_unsupported_models_are_refused_before_their_weights_are_fetched(hub: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    asked = hub(tmp_path)
    with pytest.raises(UnsupportedModelError, match="'bert'"):
        load("owner/bert")
    assert asked == [["config.json", "adapter_config.json"]]


def test_models_that_do_not_fit_are_refused_before_their_weights_are_fetched(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    monkeypatch.setattr("truedepth.models.loading.memory.available_bytes", lambda device: 1e9)
    asked = hub(tmp_path)
    with pytest.raises(ModelLoadError, match=r"'owner/llama' needs .* GB of memory on cpu in float32"):
        load("owner/llama")
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.LocalEntryNotFoundError("offline"), "cannot reach the Hugging Face hub.*local cache"),
        (response_error(errors.RepositoryNotFoundError), "has no model 'owner/name'.*check the spelling"),
        (response_error(errors.GatedRepoError), r"accept terms.*https://huggingface\.co/owner/name"),
        (response_error(errors.HfHubHTTPError), "refused 'owner/name': 403 Forbidden"),
        (OSError(28, "No space left on device"), "fetching 'owner/name' .*No space left"),
    ],
)
def test_failures_of_the_hub(error: Exception, message: str, hub: Any) -> None:
    hub(error)
    with pytest.raises(ModelLoadError, match=message):
        load("owner/name")


@pytest.mark.parametrize("source", ["a b/c", "x/y/z", "owner//name"])
def test_names_that_are_no_hub_ids(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelLoadError, match="neither an existing file or folder nor a hub id"):
        load(source)


def test_offline_without_a_cached_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelLoadError, match="cannot reach the Hugging Face hub"):
        load("owner/never-fetched")


def test_cached_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import scan_cache_dir

    def fill(repository: str, file: str) -> None:
        snapshot = tmp_path / repository / "snapshots" / ("a" * 40)
        blobs = tmp_path / repository / "blobs"
        snapshot.mkdir(parents=True)
        blobs.mkdir()
        (blobs / "b").write_bytes(b"12345")
        (snapshot / file).symlink_to(blobs / "b")

    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", lambda: scan_cache_dir(tmp_path / "missing"))
    assert cached_models() == ()

    fill("models--owner--whole", "model.safetensors")
    fill("models--owner--only-config", "config.json")
    fill("datasets--owner--text", "data.safetensors")
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", lambda: scan_cache_dir(tmp_path))
    (found,) = cached_models()
    assert (found.name, found.size_bytes) == ("owner/whole", 5)
    assert (found.path / "model.safetensors").exists()
