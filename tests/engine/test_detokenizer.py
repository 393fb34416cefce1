"""Tokens as text, a piece at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from truedepth.engine.sampling.detokenizer import IncrementalDetokenizer

TEXT = "Grüße, 你好 😀👍🏽!\tTabs\n\nand  spaces "


@pytest.fixture(scope="module")
def by_bytes(tiny_folder: Path) -> Any:
    """A tokenizer with one token a byte."""
    return AutoTokenizer.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def by_words() -> Any:
    """A tokenizer in the manner of Llama 2: words with their space, and bytes for all else."""
    words = ["<unk>", "</s>", "▁the", "▁end", "▁of", ".", "ing", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


def write(tokenizer: Any, ids: list[int], stop: tuple[str, ...] = ()) -> tuple[IncrementalDetokenizer, bool]:
    """Feed tokens up to the one that ends the text; whether one did."""
    detokenizer = IncrementalDetokenizer(tokenizer, stop)
    return detokenizer, any(detokenizer.add(token) for token in ids)


class TestPieces:
    def test_together_they_are_the_text(self, by_bytes: Any) -> None:
        ids = by_bytes(TEXT)["input_ids"]
        detokenizer, _ = write(by_bytes, ids)
        assert detokenizer.finish() == "".join(detokenizer.texts) == TEXT
        assert len(detokenizer.texts) == len(ids)

    def test_a_character_comes_whole(self, by_bytes: Any) -> None:
        detokenizer, _ = write(by_bytes, by_bytes("a😀b")["input_ids"])
        assert detokenizer.texts == ["a", "", "", "", "😀", "b"]

    def test_spaces_before_words(self, by_words: Any) -> None:
        ids = [2, 3, 4, 2, 3, 6, 5]
        detokenizer, _ = write(by_words, ids)
        assert detokenizer.texts == ["the", " end", " of", " the", " end", "ing", "."]
        assert detokenizer.finish() == by_words.decode(ids)

    def test_bytes_between_words(self, by_words: Any) -> None:
        ids = [2, *(7 + byte for byte in "你😀".encode()), 3]
        detokenizer, _ = write(by_words, ids)
        assert [text for text in detokenizer.texts if text] == ["the", "你", "😀", " end"]

    def test_special_tokens_have_no_text(self, by_words: Any) -> None:
        assert write(by_words, [2, 1, 3, 1])[0].finish() == "the end"

    def test_slow_tokenizer(self) -> None:
        tokenizer = ByT5Tokenizer()
        ids = tokenizer(f"{TEXT}. {TEXT}")["input_ids"]
        assert write(tokenizer, ids)[0].finish() == f"{TEXT}. {TEXT}"
        detokenizer, stopped = write(tokenizer, ids, (". ",))
        assert (detokenizer.finish(), stopped) == (TEXT, True)

    def test_nothing(self, by_bytes: Any) -> None:
        assert IncrementalDetokenizer(by_bytes).finish() == ""

    def test_half_a_character_at_the_end(self, by_bytes: Any) -> None:
        ids = by_bytes("a😀")["input_ids"][:-1]
        detokenizer, _ = write(by_bytes, ids)
        assert "".join(detokenizer.texts) == "a"
        assert detokenizer.finish() == detokenizer.finish() == "a\N{REPLACEMENT CHARACTER}"

    @given(tokens=st.lists(st.integers(0, 258), max_size=60))
    def test_any_tokens_are_decoded_as_a_whole_would_be(self, by_bytes: Any, tokens: list[int]) -> None:
        assert write(by_bytes, tokens)[0].finish() == by_bytes.decode(tokens, skip_special_tokens=True)

    @pytest.mark.parametrize("token", [1, 3 + 200, 70], ids=["special", "no character", "letter"])
    def test_the_cost_of_a_token_does_not_grow(self, token: int, by_bytes: Any) -> None:
        longest = 0

        class Counting:
            def decode(self, ids: list[int], **options: Any) -> str:
                nonlocal longest
                longest = max(longest, len(ids))
                return str(by_bytes.decode(ids, **options))

        write(Counting(), [token] * 1000)
        assert longest <= 128


class TestStopStrings:
    @pytest.mark.parametrize(
        ("text", "stop", "expected"),
        [
            ("one two three", ("two",), "one "),
            ("one two three", ("three", "two"), "one "),
            ("one two", ("four",), "one two"),
            ("stop", ("stop",), ""),
            ("aab", ("ab",), "a"),
            ("aaab", ("aab",), "a"),
            ("one\n\ntwo", ("\n\n",), "one"),
            ("x 😀 y", ("😀",), "x "),
            ("abcd", ("abcd", "c"), "ab"),
            ("abc", ("c", "bc"), "a"),
            ("unfinished st", ("stop",), "unfinished st"),
        ],
    )
    def test_the_text_ends_before(self, text: str, stop: tuple[str, ...], expected: str, by_bytes: Any) -> None:
        detokenizer, stopped = write(by_bytes, by_bytes(text)["input_ids"], stop)
        assert stopped == (expected != text)
        assert detokenizer.finish() == expected

    def test_what_may_be_its_beginning_is_held_back(self, by_bytes: Any) -> None:
        detokenizer, _ = write(by_bytes, by_bytes("go st")["input_ids"], ("stop",))
        assert "".join(detokenizer.texts) == "go "
        assert [detokenizer.add(token) for token in by_bytes("art")["input_ids"]] == [False] * 3
        assert "".join(detokenizer.texts) == "go start"

    def test_a_stop_string_within_a_token(self, by_words: Any) -> None:
        detokenizer, stopped = write(by_words, [2, 3, 4], ("en",))
        assert (detokenizer.finish(), stopped) == ("the ", True)

    @given(
        text=st.text("ab", max_size=30),
        stop=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
        cuts=st.lists(st.integers(1, 5), max_size=30),
    )
    def test_how_the_text_is_cut_into_tokens_makes_no_difference(
        self, text: str, stop: list[str], cuts: list[int]
    ) -> None:
        pieces, rest = [], text
        for cut in cuts:
            pieces, rest = [*pieces, rest[:cut]], rest[cut:]

        class Pieces:
            def decode(self, ids: list[int], **_: Any) -> str:
                return "".join([*pieces, *rest][token] for token in ids)

        detokenizer, _ = write(Pieces(), list(range(len(pieces) + len(rest))), tuple(stop))
        ends = [(at + len(word), at) for word in stop for at in range(len(text)) if text.startswith(word, at)]
        assert detokenizer.finish() == "".join(detokenizer.texts) == (text[: min(ends)[1]] if ends else text)
