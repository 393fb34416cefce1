"""The head that comes with a model: `--draft default`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import truedepth
from truedepth.engine.drafts.heads import packaged
from truedepth.engine.drafts.heads.eagle_head import EagleHead
from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary
from truedepth.engine.engine import Engine
from truedepth.errors import DraftError, UsageError
from truedepth.models.loading.load import LoadedModel, load


@pytest.fixture
def loaded(tiny_folder: Path) -> LoadedModel:
    loaded = load(str(tiny_folder))
    loaded.model.name_or_path = "tiny"
    return loaded


@pytest.fixture
def heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of packaged heads, which is empty."""
    monkeypatch.setattr(packaged, "_HEADS", tmp_path)
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
    with pytest.raises(UsageError, match="no head comes with the model 'tiny', so it has no draft 'default'; give a"):
        truedepth.generate(loaded, "abc", draft="default")
    EagleHead.fresh(loaded.model, (6,)).save(heads / "other")
    with pytest.raises(UsageError, match=r"no draft 'default' \(one comes with other\)"):
        truedepth.generate(loaded, "abc", draft="default")


def test_another_model_of_that_name(loaded: LoadedModel, heads: Path, tiny_model: Any) -> None:
    EagleHead.fresh(tiny_model("qwen2"), (6,)).save(heads / "tiny")
    with pytest.raises(DraftError, match="the head is for another model"):
        truedepth.generate(loaded, "abc", draft="default")


def test_a_vocabulary_besides(loaded: LoadedModel, heads: Path) -> None:
    EagleHead.fresh(loaded.model, (6,)).save(heads / "tiny")
    with pytest.raises(UsageError, match="a trained head has its own draft vocabulary"):
        truedepth.generate(loaded, "abc", draft="default", vocabulary=DraftVocabulary(torch.arange(9)))


def test_what_is_packaged_is_for_embedded_models() -> None:
    from truedepth.models.loading.embedded import embedded_model

    assert all(embedded_model(name) for name in packaged.packaged_heads())
