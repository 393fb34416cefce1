"""Draft vocabularies: counted rightly, read back as written, and refused where they do not fit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary, build_vocabulary, end_ids_of, vocabulary_size_of
from truedepth.engine.drafts.policy import FixedPolicy
from truedepth.engine.engine import Engine
from truedepth.engine.sampling.request import Request
from truedepth.errors import DraftError, OutputError, TextError, UsageError
from truedepth.models.loading.load import LoadedModel, load
from truedepth.plan import DepthPlan

EXIT = DepthPlan.parse("0-2", 6)
TEXT = "She sells sea shells; the shells she sells are sea shells, for sure."


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> LoadedModel:
    """A tiny llama of 259 tokens: three special ones, and one a byte."""
    return load(str(tiny_folder), device="cpu")


def build(tiny: LoadedModel, text: str | list[str] = TEXT, size: int = 20, **changed: Any) -> DraftVocabulary:
    arguments = {"vocabulary_size": 259, "end_ids": {2}, "source": "shells"} | changed
    return build_vocabulary(tiny.tokenizer, [text] if isinstance(text, str) else text, size, **arguments)


class TestBuild:
    def test_order_and_coverage(self, tiny: LoadedModel) -> None:
        """By falling frequency, ties by id; the three special tokens are there whatever the text."""
        found = build(tiny, "abba caba", 6)
        spell = tiny.tokenizer.convert_tokens_to_ids
        a, b, c = spell(["a", "b", "c"])
        assert found.ids.tolist() == [a, b, c, 0, 1, 2]  # 'c' before the blank, whose id is higher
        assert c < spell("Ġ")
        assert found.coverage == pytest.approx(8 / 9)
        assert found.source == "shells"

    @given(st.text(alphabet="abcdef ", min_size=1), st.integers(3, 259))
    def test_is_the_most_frequent(self, tiny: LoadedModel, text: str, size: int) -> None:
        ids = tiny.tokenizer(text, add_special_tokens=False).input_ids
        counts = Counter(ids)
        ranked = sorted(set(range(259)) - {0, 1, 2}, key=lambda token: (-counts[token], token))
        kept = {0, 1, 2, *ranked[: size - 3]}
        found = build(tiny, text, size)
        assert found.ids.tolist() == sorted(kept, key=lambda token: (-counts[token], token))
        assert found.coverage == pytest.approx(sum(token in kept for token in ids) / len(ids))

    def test_counts_every_text(self, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = build(tiny, TEXT * 3)
        monkeypatch.setattr("truedepth.engine.drafts.heads.vocabulary._PIECE", 7)
        parts = build(tiny, [TEXT, TEXT, TEXT])
        assert torch.equal(whole.ids, parts.ids)
        assert whole.coverage == parts.coverage

    def test_end_tokens_besides_the_tokenizers(self, tiny: LoadedModel) -> None:
        assert 200 in build(tiny, size=4, end_ids={2, 200}).ids.tolist()
        whole = build(tiny, "a", 259, end_ids={2, 200}).ids.tolist()
        assert whole[1:] == sorted(whole[1:])  # among what the text lacks, by id

    def test_tokens_that_the_model_lacks(self, tiny: LoadedModel) -> None:
        lowest = tiny.tokenizer.convert_tokens_to_ids("b")
        assert int(build(tiny, "aabbcc", 5, vocabulary_size=lowest).ids.max()) < lowest

    @pytest.mark.parametrize("size", [0, 2, 260])
    def test_a_size_that_cannot_be(self, size: int, tiny: LoadedModel) -> None:
        with pytest.raises(UsageError, match=rf"is {size}; it must be at least 3 .* and at most 259"):
            build(tiny, size=size)

    @pytest.mark.parametrize("texts", [[], [""], ["", ""]])
    def test_no_text(self, texts: list[str], tiny: LoadedModel) -> None:
        with pytest.raises(TextError, match="shells has no tokens to count"):
            build(tiny, texts)


class TestIds:
    @pytest.mark.parametrize(
        ("ids", "message"),
        [
            (torch.tensor([2, 5, 7, 5, 2]), "has ids more than once: 2, 5;"),
            (torch.tensor([2, -1]), "has the id -1; ids start at 0"),
            (torch.tensor([], dtype=torch.int64), r"are int64 of shape \(0,\)"),
            (torch.tensor([[2, 5]]), r"are int64 of shape \(1, 2\)"),
            (torch.tensor([2, 5], dtype=torch.int32), r"are int32 of shape \(2,\)"),
            (torch.tensor([2.0, 5.0]), r"are float32 of shape \(2,\)"),
        ],
    )
    def test_refused(self, ids: torch.Tensor, message: str) -> None:
        with pytest.raises(DraftError, match=message):
            DraftVocabulary(ids)

    @pytest.mark.parametrize(
        ("ids", "message"),
        [
            ([5, 6, 7], r"lacks the model's end of text \(token 2\)"),
            ([2, 64], "has the id 64, but the model's vocabulary has 64 tokens"),
        ],
    )
    def test_refused_by_an_engine(self, ids: list[int], message: str, tiny_model: Callable[..., Any]) -> None:
        with Engine(tiny_model("llama")) as engine, pytest.raises(DraftError, match=message):
            engine.draft(EXIT, vocabulary=DraftVocabulary(torch.tensor(ids)))

    def test_every_end_token_is_asked_for(self, tiny_model: Callable[..., Any]) -> None:
        model = tiny_model("llama")
        model.generation_config.eos_token_id = [2, 9]
        with Engine(model) as engine, pytest.raises(DraftError, match=r"\(token 9\)"):
            engine.draft(EXIT, vocabulary=DraftVocabulary(torch.tensor([2, 5])))

    def test_a_model_without_an_end(self, tiny_model: Callable[..., Any]) -> None:
        model = tiny_model("llama")
        model.generation_config.eos_token_id = None
        assert end_ids_of(model) == frozenset()
        with Engine(model) as engine:
            engine.draft(EXIT, vocabulary=DraftVocabulary(torch.tensor([5, 6])))


class TestDrafting:
    def test_lossless(self, tiny: LoadedModel) -> None:
        request = Request(tiny.tokenizer(TEXT).input_ids, 16, ignore_end=True)
        with Engine(tiny.model) as engine:
            plain = engine.generate([request])
            draft = engine.draft(EXIT, vocabulary=build(tiny))
            drafted = engine.generate([request], drafts=[draft], policy=FixedPolicy(3))
        assert drafted[0].token_ids == plain[0].token_ids
        assert drafted[0].drafted


class TestFiles:
    def test_round_trip(self, tmp_path: Path, tiny: LoadedModel) -> None:
        made = build(tiny)
        made.save(tmp_path / "new" / "folder", tiny.model, tiny.tokenizer)
        read = DraftVocabulary.load(tmp_path / "new" / "folder", tiny.model, tiny.tokenizer)
        assert torch.equal(read.ids, made.ids)
        assert (read.source, read.coverage) == (made.source, made.coverage)

    def test_beside_a_checkpoint(self, tmp_path: Path, tiny: LoadedModel) -> None:
        tiny.model.save_pretrained(tmp_path)
        tiny.tokenizer.save_pretrained(tmp_path)
        build(tiny).save(tmp_path, tiny.model, tiny.tokenizer)
        again = load(str(tmp_path), device="cpu")
        with Engine(again.model):  # the head is freed now
            assert DraftVocabulary.load(tmp_path, again.model, again.tokenizer).coverage

    def test_by_hand(self, tmp_path: Path, tiny: LoadedModel) -> None:
        """Nothing was counted, so nothing is known of its coverage."""
        DraftVocabulary(torch.tensor([2, 5])).save(tmp_path, tiny.model, tiny.tokenizer)
        assert DraftVocabulary.load(tmp_path, tiny.model, tiny.tokenizer).coverage is None

    def test_the_card(self, tmp_path: Path, tiny: LoadedModel) -> None:
        build(tiny, size=259).save(tmp_path, tiny.model, tiny.tokenizer)
        card = json.loads((tmp_path / "draft_vocabulary.json").read_text())
        assert card.pop("truedepth_version")
        assert len(card.pop("tokens_sha256")) == 64
        expected = {"format_version": 1, "vocabulary_size": 259, "size": 259, "source": "shells", "coverage": 1.0}
        assert card == expected

    def test_saving_what_does_not_fit(self, tmp_path: Path, tiny: LoadedModel) -> None:
        with pytest.raises(DraftError, match="lacks the model's end of text"):
            DraftVocabulary(torch.tensor([5])).save(tmp_path, tiny.model, tiny.tokenizer)
        assert not list(tmp_path.iterdir())

    def test_saving_to_a_file(self, tmp_path: Path, tiny: LoadedModel) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match="is a file; give a folder"):
            build(tiny).save(tmp_path / "file", tiny.model, tiny.tokenizer)


@pytest.fixture
def saved(tmp_path: Path, tiny: LoadedModel) -> Path:
    build(tiny).save(tmp_path, tiny.model, tiny.tokenizer)
    return tmp_path


def refusal(folder: Path, tiny: LoadedModel) -> str:
    with pytest.raises(DraftError) as caught:
        DraftVocabulary.load(folder, tiny.model, tiny.tokenizer)
    assert str(folder) in str(caught.value)
    return str(caught.value)


class TestRefusedFiles:
    @pytest.mark.parametrize(
        ("tensors", "message"),
        [
            ({"ids": torch.tensor([2, 5, 5])}, "has ids more than once: 5"),
            ({"ids": torch.tensor([2, 259])}, "has the id 259, but the model's vocabulary has 259"),
            ({"ids": torch.tensor([-2, 2])}, "has the id -2"),
            ({"ids": torch.tensor([5, 6])}, "lacks the model's end of text (token 2)"),
            ({"ids": torch.tensor([2.0])}, "are float32 of shape (1,)"),
            ({"ids": torch.tensor([2, 5])}, "not of one piece with its card"),
            ({"ids": torch.arange(20)}, "do not stand for the tokens that were counted"),
            ({"tokens": torch.tensor([2])}, "holds tokens instead of 'ids'"),
            ({}, "holds nothing instead of 'ids'"),
        ],
    )
    def test_ids(self, tensors: dict[str, torch.Tensor], message: str, saved: Path, tiny: LoadedModel) -> None:
        save_file(tensors, saved / "draft_vocabulary.safetensors")
        assert message in refusal(saved, tiny)

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"format_version": "1"}, "has the format version '1', and this truedepth reads 1"),
            ({"vocabulary_size": 260}, "is for a vocabulary of 260 tokens, but the model's has 259"),
            ({"size": 2}, "not of one piece with its card"),
            ({"coverage": 1.5}, "'coverage': input should be less than or equal to 1"),
            ({"coverage": float("nan")}, "'coverage': input should be"),
            ({"source": None}, "'source': input should be a valid string"),
            ({"note": "mine"}, "'note': extra inputs are not permitted"),
        ],
    )
    def test_card(self, changed: dict[str, Any], message: str, saved: Path, tiny: LoadedModel) -> None:
        path = saved / "draft_vocabulary.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
        assert message in refusal(saved, tiny)

    def test_a_field_is_missing(self, saved: Path, tiny: LoadedModel) -> None:
        path = saved / "draft_vocabulary.json"
        card = json.loads(path.read_text())
        del card["size"]
        path.write_text(json.dumps(card))
        assert "'size': field required" in refusal(saved, tiny)

    def test_another_tokenizer(self, saved: Path, tiny: LoadedModel) -> None:
        """As many tokens, but two letters have changed places."""
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerFast

        data = json.loads(tiny.tokenizer.backend_tokenizer.to_str())
        vocab = data["model"]["vocab"]
        vocab["s"], vocab["Q"] = vocab["Q"], vocab["s"]
        other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(data)))
        with pytest.raises(DraftError, match="it is for another tokenizer"):
            DraftVocabulary.load(saved, tiny.model, other)

    @pytest.mark.parametrize("ending", ["json", "safetensors"])
    def test_missing(self, ending: str, saved: Path, tiny: LoadedModel) -> None:
        path = saved / f"draft_vocabulary.{ending}"
        path.unlink()
        assert f"cannot read {path}: No such file or directory" in refusal(saved, tiny)

    def test_truncated(self, saved: Path, tiny: LoadedModel) -> None:
        path = saved / "draft_vocabulary.safetensors"
        path.write_bytes(path.read_bytes()[:-8])
        assert "is truncated or corrupt" in refusal(saved, tiny)

    def test_a_pickle(self, saved: Path, tiny: LoadedModel) -> None:
        torch.save({"ids": torch.arange(3)}, saved / "draft_vocabulary.safetensors")
        assert "is truncated or corrupt" in refusal(saved, tiny)


def test_sizes_are_the_heads(tiny_model: Callable[..., Any]) -> None:
    assert vocabulary_size_of(tiny_model("llama")) == 64
