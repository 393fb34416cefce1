"""The head that comes with a model: `--draft default`."""

from __future__ import annotations

import sys
import tomllib
from importlib import import_module
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
import torch

import truedepth
from truedepth.engine.drafts.heads import packaged
from truedepth.engine.drafts.heads.eagle_head import EagleHead
from truedepth.engine.drafts.heads.trained_head import HEAD_FILES
from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary
from truedepth.engine.engine import Engine
from truedepth.errors import DraftError, UsageError
from truedepth.models.loading.embedded import embedded_model
from truedepth.models.loading.load import LoadedModel, load


@pytest.fixture
def loaded(tiny_folder: Path) -> LoadedModel:
    loaded = load(str(tiny_folder))
    loaded.model.name_or_path = "tiny"
    return loaded


@pytest.fixture
def heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an installed package that names heads for the models `tiny` and `other` in it."""
    (tmp_path / "some_heads.py").write_text(
        "from pathlib import Path\n\nTINY, OTHER = (Path(__file__).with_name(name) for name in ('tiny', 'other'))\n"
    )
    monkeypatch.setattr(
        packaged,
        "entry_points",
        lambda **wanted: EntryPoints(
            EntryPoint(name, f"some_heads:{name.upper()}", packaged.ENTRY_POINT_GROUP) for name in ("tiny", "other")
        ).select(**wanted),
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "some_heads", raising=False)
    return tmp_path


def test_writes_the_same_text(loaded: LoadedModel, heads: Path) -> None:
    EagleHead.fresh(loaded.model, (3, 6)).save(heads / "tiny")
    plain = truedepth.generate(loaded, "abc", max_new_tokens=12)
    drafted = truedepth.generate(loaded, "abc", max_new_tokens=12, draft="default", num_speculative_tokens=2)
    assert drafted.token_ids == plain.token_ids
    assert drafted.drafted


def test_is_read_once_an_engine(loaded: LoadedModel, heads: Path) -> None:
    EagleHead.fresh(loaded.model, (6,)).save(heads / "tiny")
    with Engine(loaded.model, loaded.tokenizer) as engine:
        assert engine.default_draft() is engine.default_draft()
        both = truedepth.generate(engine, "abc", max_new_tokens=12, draft=["default", "exit:4"])
        assert both.token_ids == truedepth.generate(engine, "abc", max_new_tokens=12).token_ids


def test_a_model_without_one(loaded: LoadedModel, heads: Path) -> None:
    loaded.model.name_or_path = "unknown"
    said = r"no head for the model 'unknown' is installed, .* \(there are heads for other, tiny\); .* truedepth-heads"
    with pytest.raises(UsageError, match=said):
        truedepth.generate(loaded, "abc", draft="default")


def test_two_packages_with_a_head_for_one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("tiny", f"{package}:TINY", packaged.ENTRY_POINT_GROUP) for package in ("one", "two")]
    monkeypatch.setattr(packaged, "entry_points", lambda **_: points)
    with pytest.raises(UsageError, match="several packages have a head for the model 'tiny': one:TINY, two:TINY"):
        packaged.packaged_head("tiny")


def test_another_model_of_that_name(loaded: LoadedModel, heads: Path, tiny_model: Any) -> None:
    EagleHead.fresh(tiny_model("qwen2"), (6,)).save(heads / "tiny")
    with pytest.raises(DraftError, match="the head is for another model"):
        truedepth.generate(loaded, "abc", draft="default")


def test_a_vocabulary_besides(loaded: LoadedModel, heads: Path) -> None:
    EagleHead.fresh(loaded.model, (6,)).save(heads / "tiny")
    with pytest.raises(UsageError, match="a trained head has its own draft vocabulary"):
        truedepth.generate(loaded, "abc", draft="default", vocabulary=DraftVocabulary(torch.arange(9)))


def test_our_own_package_has_heads_for_embedded_models(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(__file__).parents[2] / "packages" / "truedepth-heads"
    monkeypatch.syspath_prepend(folder / "src")
    points = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"]
    for model, value in points[packaged.ENTRY_POINT_GROUP].items():
        assert embedded_model(model)
        module, _, attribute = value.partition(":")
        assert (vars(import_module(module))[attribute] / f"{HEAD_FILES}.json").is_file()
