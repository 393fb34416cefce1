"""The tokenizer of a GGUF file splits text as the model's own tokenizer does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from truedepth.errors import ModelLoadError, UnsupportedModelError
from truedepth.models.loading.load import load

Make = Callable[..., Any]


def pieces(loaded: Any, text: str) -> list[str]:
    tokens: list[str] = loaded.tokenizer.convert_ids_to_tokens(loaded.tokenizer(text).input_ids)
    return tokens


def test_text_survives_encoding_and_decoding(tiny_model: Make, write_gguf: Make) -> None:
    tokenizer = load(str(write_gguf(tiny_model("llama")))).tokenizer
    for text in ("the quick brown fox, an ox", " two  spaces", "line\n\nline 42!"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_special_tokens_and_chat_template_carry_over(tiny_model: Make, write_gguf: Make) -> None:
    tokenizer = load(str(write_gguf(tiny_model("llama")))).tokenizer
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == ("<pad>", "<s>", "</s>")
    assert tokenizer("an</s>").input_ids[-1] == 2
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "user: hi\n"
    assert tokenizer.padding_side == "left"


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        # GPT-2 keeps the last space with what follows; SmolLM takes digits out first: spaces stay together.
        ("gpt-2", ["Ġ", "Ġ", "7", "Ċ", "Ċ", "1"]),
        ("smollm", ["ĠĠ", "7", "ĊĊ", "1"]),
    ],
)
def test_digits_are_split_as_the_file_says(split: str, expected: list[str], tiny_model: Make, write_gguf: Make) -> None:
    assert pieces(load(str(write_gguf(tiny_model("llama"), split=split))), "  7\n\n1") == expected


def test_llama_3_text_starts_with_bos(tiny_model: Make, write_gguf: Make) -> None:
    assert pieces(load(str(write_gguf(tiny_model("llama"), split="llama-bpe"))), "the") == ["<s>", "the"]
    said = write_gguf(tiny_model("llama"), split="llama-bpe", edit=lambda writer: writer.add_add_bos_token(False))
    assert pieces(load(str(said)), "the") == ["the"]


def test_whole_words_go_before_merges(tiny_model: Make, write_gguf: Make) -> None:
    # "thean" is a token that no merge makes.
    def add_word(writer: Any) -> None:
        tokens = writer.kv_data[0].pop("tokenizer.ggml.tokens").value
        types = writer.kv_data[0].pop("tokenizer.ggml.token_type").value
        writer.add_token_list([*tokens, "thean"])
        writer.add_token_types([*types, 1])

    model = tiny_model("llama")
    assert pieces(load(str(write_gguf(model, split="gpt-2", edit=add_word))), "thean") == ["the", "an"]
    assert pieces(load(str(write_gguf(model, split="llama-bpe", edit=add_word))), "thean") == ["<s>", "thean"]


def test_a_file_without_tokenizer_is_refused(tiny_model: Make, write_gguf: Make) -> None:
    with pytest.raises(ModelLoadError, match="has no tokenizer"):
        load(str(write_gguf(tiny_model("llama"), tokenizer=False)))


def test_an_unknown_kind_of_tokenizer_is_refused(tiny_model: Make, write_gguf: Make) -> None:
    def unknown(writer: Any) -> None:
        writer.kv_data[0].pop("tokenizer.ggml.model")
        writer.add_tokenizer_model("rwkv")

    with pytest.raises(UnsupportedModelError, match=r"a tokenizer of the kind 'rwkv', .* \(it reads gpt2 and llama\)"):
        load(str(write_gguf(tiny_model("llama"), edit=unknown)))
