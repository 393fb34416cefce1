"""Tokens as text, a piece at a time."""

from __future__ import annotations

from collections.abc import Mapping
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


def write(
    tokenizer: Any, ids: list[int], stop: tuple[str, ...] = (), prompt: list[int] | tuple[int, ...] = ()
) -> tuple[IncrementalDetokenizer, bool]:
    """Feed tokens up to the one that ends the text; whether one did."""
    detokenizer = IncrementalDetokenizer(tokenizer, stop, prompt)
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


def in_bytes(text: str) -> list[int]:
    """Byte tokens of `by_words`."""
    return [7 + byte for byte in text.encode()]


THE, END, OF, STOP, ING = 2, 3, 4, 5, 6
SPECIAL = 1


class TestPrompt:
    @pytest.mark.parametrize(
        ("prompt", "new", "text"),
        [
            ([THE], [END], " end"),
            ([THE], [ING, END], "ing end"),
            ([THE], in_bytes(" "), " "),
            ([THE, *in_bytes(" ")], [END], " end"),
            ([THE], [*in_bytes("你"), END], "你 end"),
            (in_bytes("你"), in_bytes("😀"), "😀"),
            ([THE, *in_bytes("你" * 9)], [*in_bytes("你"), END], "你 end"),
            ([SPECIAL], [END], "end"),
            ([THE, SPECIAL], [END], " end"),
            ([THE, *[SPECIAL] * 30], [END], " end"),
            ([SPECIAL, THE], [SPECIAL, END], " end"),
            ([], [THE, END], "the end"),
            (in_bytes("你")[:2], in_bytes("你")[2:], "你"),
        ],
    )
    def test_both_decoded_together_are_prompt_and_text(
        self, prompt: list[int], new: list[int], text: str, by_words: Any
    ) -> None:
        detokenizer, _ = write(by_words, new, prompt=prompt)
        assert detokenizer.finish() == "".join(detokenizer.texts) == text
        before = by_words.decode(prompt, skip_special_tokens=True).rstrip("\N{REPLACEMENT CHARACTER}")
        assert by_words.decode(prompt + new, skip_special_tokens=True) == before + text

    @given(text=st.text(max_size=20), cut=st.integers(0, 20))
    def test_wherever_a_text_is_cut(self, text: str, cut: int, by_words: Any) -> None:
        prompt, rest = in_bytes(text[:cut]), in_bytes(text[cut:])
        whole = by_words.decode(prompt + rest)
        assert by_words.decode(prompt) + write(by_words, rest, prompt=prompt)[0].finish() == whole

    def test_a_byte_that_is_no_character_costs_nothing_before_it(self, by_words: Any) -> None:
        detokenizer, _ = write(by_words, [*in_bytes("你😀")[:4], THE], prompt=in_bytes("好"))
        assert detokenizer.finish() == "你\N{REPLACEMENT CHARACTER} the"


class TestSpecialStopStrings:
    @pytest.mark.parametrize(
        ("new", "stop", "expected"),
        [
            ([THE, SPECIAL, END], ("</s>",), "the"),
            ([THE, END, SPECIAL, OF], (" end</s>",), "the"),
            ([THE, SPECIAL, END, OF], ("</s> en",), "the"),
            ([THE, SPECIAL, SPECIAL, END], ("</s></s>",), "the"),
            ([THE, SPECIAL, END], ("<unk>",), "the end"),
            ([THE, SPECIAL, END], ("the end",), "the end"),
            ([SPECIAL, THE], ("</",), ""),
            ([THE, SPECIAL, END], ("s> e", "</s>"), "the"),
        ],
    )
    def test_special_tokens_count_with_their_names(
        self, new: list[int], stop: tuple[str, ...], expected: str, by_words: Any
    ) -> None:
        detokenizer, stopped = write(by_words, new, stop)
        assert detokenizer.finish() == "".join(detokenizer.texts) == expected
        assert stopped == (expected != by_words.decode(new, skip_special_tokens=True))

    def test_an_end_token_is_the_last_part_of_one(self, by_words: Any) -> None:
        for stop, expected in ((" end</s>", "the"), (" end.", "the end")):
            detokenizer, _ = write(by_words, [THE, END], (stop,))
            assert detokenizer.add(SPECIAL, ends=True) == (expected == "the")
            assert detokenizer.finish() == "".join(detokenizer.texts) == expected

    @pytest.mark.parametrize(
        ("prompt", "new", "stop", "expected"),
        [
            ([THE], [END, OF], ("the end",), ""),
            ([THE], [END, OF], ("e en",), ""),
            ([THE, SPECIAL], [END, OF], ("</s> end",), ""),
            ([THE, SPECIAL], [END, OF], ("</s>", "he"), " end of"),
            ([THE, END], [OF, STOP], ("the end of!", " end"), " of."),
            ([THE], [END, OF], (" end",), ""),
            ([THE], [END, OF], (" end ",), ""),
            ([THE], [END, OF], ("end",), " "),
            ([THE], [END, OF], ("the en", "nd of"), ""),
        ],
    )
    def test_a_stop_string_may_begin_in_the_prompt_but_not_end_there(
        self, prompt: list[int], new: list[int], stop: tuple[str, ...], expected: str, by_words: Any
    ) -> None:
        detokenizer, stopped = write(by_words, new, stop, prompt)
        assert detokenizer.finish() == "".join(detokenizer.texts) == expected
        assert stopped == (expected not in (" end of", " of."))

    def test_it_is_seen_before_half_a_character(self) -> None:
        """As a token that holds both has it."""
        tokenizer = Tokenizer(models.BPE({".ð": 0, "Ł": 1, "ĺ": 2, "Ģ": 3}, []))
        tokenizer.decoder = decoders.ByteLevel()
        detokenizer, stopped = write(PreTrainedTokenizerFast(tokenizer_object=tokenizer), [0], (".",))
        assert (detokenizer.finish(), stopped) == ("", True)
        detokenizer, _ = write(PreTrainedTokenizerFast(tokenizer_object=tokenizer), [0, 1, 2, 3])
        assert detokenizer.texts == [".", "", "", "😀"]


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
            all_special_ids: tuple[int, ...] = ()
            added_tokens_decoder: Mapping[int, Any] = {}

            def decode(self, ids: list[int], **_: Any) -> str:
                return "".join([*pieces, *rest][token] for token in ids)

        detokenizer, _ = write(Pieces(), list(range(len(pieces) + len(rest))), tuple(stop))
        ends = [(at + len(word), at) for word in stop for at in range(len(text)) if text.startswith(word, at)]
        assert detokenizer.finish() == "".join(detokenizer.texts) == (text[: min(ends)[1]] if ends else text)
