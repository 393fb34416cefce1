"""Tokenizers in an exported file: from tokenizer.json, and from another GGUF file as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from truedepth.errors import ModelLoadError, UnsupportedModelError
from truedepth.models.gguf.splits import split_name

Make = Callable[..., Any]

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?"
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def by(expression: str, behavior: str = "isolated") -> Any:
    split = pre_tokenizers.Split(Regex(expression), behavior=behavior)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def digits_first() -> Any:
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    return pre_tokenizers.Sequence(steps)


@pytest.mark.parametrize(
    ("split", "model", "expected"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), {}, "gpt-2"),
        (digits_first(), {}, "smollm"),
        (by(LLAMA3), {"ignore_merges": True}, "llama-bpe"),
        (by(LLAMA3), {}, "dbrx"),
        (by(LLAMA3.replace("{1,3}", "")), {}, "qwen2"),
        (by(TEKKEN), {"ignore_merges": True}, "tekken"),
    ],
)
def test_the_way_text_is_split_has_llama_cpps_name(
    split: Any, model: dict[str, Any], expected: str, byte_level: Make, saved: Make, export: Make, contents: Make
) -> None:
    fields, _ = contents(export(saved("llama", byte_level(split, **model))).path)
    assert fields["tokenizer.ggml.pre"] == expected


def test_the_qwen_tokenizer_of_transformers_is_known() -> None:
    import json

    from transformers import Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer(vocab={"a": 0, "<|endoftext|>": 1}, merges=[])
    assert split_name(json.loads(tokenizer.backend_tokenizer.to_str())) == "qwen2"


@pytest.mark.parametrize(
    "split",
    [by(r"\w+"), by(LLAMA3, "removed"), pre_tokenizers.ByteLevel(add_prefix_space=True), pre_tokenizers.Whitespace()],
)
def test_another_way_of_splitting_is_refused(split: Any, byte_level: Make, saved: Make, export: Make) -> None:
    with pytest.raises(UnsupportedModelError, match=r"no name that truedepth knows for how .* splits text"):
        export(saved("llama", byte_level(split)))


def test_special_tokens_template_and_unused_rows(byte_level: Make, saved: Make, export: Make, contents: Make) -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens(["<tool>"])
    fields, _ = contents(export(saved("llama", tokenizer)).path)
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == 64
    added = tokenizer.convert_tokens_to_ids("<tool>")
    assert (types[1], types[5], types[added], types[63]) == (3, 1, 4, 5)
    assert (tokens[1], tokens[added], tokens[63]) == ("<s>", "<tool>", "[PAD63]")
    ids = [fields[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "padding")]
    assert ids == [1, 2, 0]
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert fields["tokenizer.chat_template"] == tokenizer.chat_template
    assert fields["tokenizer.ggml.merges"][3] == "th e"


def sentencepiece(prepend: bool) -> Any:
    """A tokenizer such as Llama 2's, where "the" is merged before "he"."""
    letters = ["▁", *"abcdefghijklmn", "t", "s"]
    pieces = ["th", "the", "he", "▁the"]
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(8, 30)), *letters, *pieces]
    merges = [("t", "h"), ("th", "e"), ("h", "e"), ("▁", "the")]
    backend = Tokenizer(
        models.BPE({t: i for i, t in enumerate(vocabulary)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    steps = [normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *steps] if prepend else steps)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("prepend", [True, False])
def test_sentencepiece_pieces_get_scores_in_the_order_of_merges(
    prepend: bool, saved: Make, export: Make, contents: Make
) -> None:
    fields, _ = contents(export(saved("llama", sentencepiece(prepend))).path)
    assert fields["tokenizer.ggml.model"] == "llama"
    assert fields["tokenizer.ggml.add_space_prefix"] is prepend
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    kinds = dict(zip(tokens, types, strict=True))
    assert [kinds[token] for token in ("<unk>", "<s>", "<0x0A>", "the", "▁")] == [2, 3, 6, 1, 1]
    scores = dict(zip(tokens, fields["tokenizer.ggml.scores"], strict=True))
    assert scores["th"] > scores["the"] > scores["he"] > scores["▁the"] > scores["a"]


def test_a_beginning_that_the_tokenizer_adds_is_added(saved: Make, export: Make, contents: Make) -> None:
    from tokenizers import processors

    tokenizer = sentencepiece(True)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    fields, _ = contents(export(saved("llama", tokenizer)).path)
    assert (fields["tokenizer.ggml.add_bos_token"], fields["tokenizer.ggml.add_eos_token"]) == (True, False)


def test_other_kinds_of_tokenizers_are_refused(saved: Make, export: Make) -> None:
    backend = Tokenizer(models.Unigram([("a", -1.0), ("<unk>", -2.0)], unk_id=1))
    with pytest.raises(UnsupportedModelError, match="of the kind 'Unigram', not BPE"):
        export(saved("llama", PreTrainedTokenizerFast(tokenizer_object=backend)))


def test_a_tokenizer_larger_than_the_embedding_is_refused(byte_level: Make, saved: Make, export: Make) -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens([f"<{index}>" for index in range(40)])
    with pytest.raises(UnsupportedModelError, match="without a row in the model's embedding of 64"):
        export(saved("llama", tokenizer))


def test_a_gguf_files_own_fields_are_carried_over(
    saved: Make, export: Make, contents: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With their types, half characters and keys that truedepth does not know."""
    import gguf

    from truedepth.export.gguf import export as module

    original = module.write_tokenizer

    def with_more(writer: gguf.GGUFWriter, *given: Any) -> None:
        original(writer, *given)
        tokens = writer.kv_data[0]["tokenizer.ggml.tokens"].value
        tokens[-1] = b"half \xe2\x96"
        writer.add_uint8("tokenizer.ggml.of_another_kind", 7)
        writer.add_array("tokenizer.ggml.small", [1.5, 2.5])
        writer.add_license("apache-2.0")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_tokenizer", with_more)
        first = export(saved("llama"), name="first.gguf").path
    second = export(first, "exit:3", name="second.gguf").path
    one, other = gguf.GGUFReader(first).fields, gguf.GGUFReader(second).fields
    carried = [key for key in one if key.startswith("tokenizer.")] + ["general.license", "general.name"]
    assert "tokenizer.ggml.of_another_kind" in carried
    for key in carried:
        assert other[key].types == one[key].types
        assert [bytes(part) for part in other[key].parts] == [bytes(part) for part in one[key].parts]


def test_a_model_without_a_tokenizer_is_refused(saved: Make, export: Make) -> None:
    folder = saved("llama")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ModelLoadError, match="has no tokenizer"):
        export(folder)


def test_the_name_is_phi_3_only_with_its_tokens(saved: Make, export: Make, contents: Make, byte_level: Make) -> None:
    """llama.cpp looks tokens up by the name of the model, and cannot load a file that lacks them."""
    from tokenizers import AddedToken

    folder = saved("phi3")
    there = folder.rename(folder.parent / "my-phi3")
    assert "general.name" not in contents(export(there).path)[0]
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken(token, rstrip=True, special=True) for token in ("<unk>", "<|endoftext|>")])
    fields, _ = contents(export(saved("phi3", tokenizer)).path)
    assert fields["general.name"] == "model (Phi-3)"
