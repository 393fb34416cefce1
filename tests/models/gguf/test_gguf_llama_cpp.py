"""GGUF files are read as stock llama.cpp reads them: the same token ids, and the same likely next tokens."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from truedepth.errors import ModelLoadError, TruedepthError, UnsupportedModelError
from truedepth.models.gguf.keys import LIKE, NEUTRAL, READ, REFUSED
from truedepth.models.gguf.splits import SPLITS
from truedepth.models.loading.load import load

Make = Callable[..., Any]

ALPHABET = sorted({*range(33, 127), *range(161, 173), *range(174, 256)})
OTHERS = [byte for byte in range(256) if byte not in ALPHABET]
BYTES = [chr(byte) for byte in ALPHABET] + [chr(256 + index) for index in range(len(OTHERS))]
MERGES = [
    "1 2",
    "3 4",
    "12 34",
    "Ġ Ġ",
    "ĠĠ ĠĠ",
    "Ċ Ċ",
    "Ġ Ċ",
    "t h",
    "th e",
    "Ġ the",
    "T h",
    "Th e",
    "t e",
    "te s",
    "tes t",
    "! !",
    "Ġ 12",
    "( )",
    "Ġ (",
    "; Ċ",
    "' s",
    "the 's",
    "a b",
    "Ġ a",
    "+ +",
    "Ġ +",
    "< =",
    "' T",
    "'T h",
]
VOCABULARY = ["<pad>", "<s>", "</s>", *BYTES, *(merge.replace(" ", "") for merge in MERGES), "<think>"]
KINDS = [3, 3, 3, *[1] * (len(BYTES) + len(MERGES)), 4]
TEXTS = [
    "1234 12 1 12345",
    "the 1212 the The THE's it'S",
    "  12   the\t\tthe \n",
    "\n\n12 \n \n the",
    "f();\n a++ <= ab+ab",
    "the!! (the)",
    "thetest TheThe tEST",
    "über ÉaÉ naïve 東京 12 テスト 한국 🙂🙂",
    "</s>the<s> the<think> 12",
    " ",
    "the ",
]


def byte_level(split: str | None, *, too_few: int = 0, **ids: int) -> Callable[[Any], None]:
    def edit(writer: Any) -> None:
        writer.add_tokenizer_model("gpt2")
        if split is not None:
            writer.add_tokenizer_pre(split)
        writer.add_token_list(VOCABULARY)
        writer.add_token_types(KINDS[: len(KINDS) - too_few])
        writer.add_token_merges(MERGES)
        for name, token in {"bos": 1, "eos": 2, "padding": 0, **ids}.items():
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token)

    return edit


PIECES = ["▁", *"thenaiu12!", "\n", "▁t", "▁th", "▁the", "th", "the", "▁a", "an", "▁an", "▁▁", "▁▁▁", "12"]
MERGED = ["▁▁", "▁▁▁", "▁t", "▁th", "▁the", "th", "the", "▁a", "an", "▁an", "12"]
SENTENCES = [
    "the an",
    " the",
    "   the  an",
    "12 an",
    "the\nthe",
    "é 東",
    "</s>the<s> an",
    "<|im_start|>the",
    "an<x>an",
    "",
]


def sentencepiece(prefix: bool | None, **flags: bool) -> Callable[[Any], None]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES, "<|im_start|>", "<x>"]
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(PIECES), 3, 4]

    def edit(writer: Any) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        writer.add_token_scores([-float(MERGED.index(t) + 1) if t in MERGED else -100.0 for t in tokens])
        writer.add_token_types(kinds)
        for name, token in {"bos": 1, "eos": 2, "unknown": 0}.items():
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token)
        for name, value in flags.items():
            writer.add_bool(f"tokenizer.ggml.{name}", value)
        if prefix is not None:
            writer.add_add_space_prefix(prefix)

    return edit


@pytest.fixture
def tokenized(tiny_model: Make, write_gguf: Make, llama_cpp: Make) -> Callable[..., dict[str, list[str]]]:
    """`tokenized({name: edit}, texts)`: of each file the texts whose ids are not llama.cpp's."""

    def compare(edits: dict[str, Callable[[Any], None]], texts: list[str]) -> dict[str, list[str]]:
        paths = {
            name: write_gguf(
                tiny_model("llama", vocab_size=_size(edit)), edit=edit, tokenizer=False, name=f"{number}.gguf"
            )
            for number, (name, edit) in enumerate(edits.items())
        }
        answers = llama_cpp([{"path": str(path), "texts": texts} for path in paths.values()])
        wrong = {}
        for (name, path), expected in zip(paths.items(), answers, strict=True):
            assert not isinstance(expected, str), f"{name}: {expected}"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                tokenizer = load(str(path)).tokenizer
            own = [tokenizer(text).input_ids for text in texts]
            wrong[name] = [t for t, ids, theirs in zip(texts, own, expected, strict=True) if ids != theirs]
        return {name: texts for name, texts in wrong.items() if texts}

    return compare


def _size(edit: Callable[[Any], None]) -> int:
    """Of the vocabulary that an edit writes."""
    import gguf

    writer = gguf.GGUFWriter(None, "llama")
    edit(writer)
    return len(writer.kv_data[0]["tokenizer.ggml.tokens"].value)


@pytest.mark.slow
def test_token_ids(tokenized: Make) -> None:
    """Of byte-level vocabularies, by every known way of splitting, and where the file does not say it."""
    assert tokenized({str(split): byte_level(split) for split in [None, *SPLITS]}, TEXTS) == {}


def test_token_ids_of_sentencepiece(tokenized: Make) -> None:
    edits = {f"prefix {prefix}": sentencepiece(prefix) for prefix in (None, True, False)}
    edits["no BOS, but EOS"] = sentencepiece(None, add_bos_token=False, add_eos_token=True)
    edits["whitespace kept"] = sentencepiece(True, remove_extra_whitespaces=True)
    assert tokenized(edits, SENTENCES) == {}


def test_ids_beyond_the_vocabulary_are_done_without(tokenized: Make, tiny_model: Make, write_gguf: Make) -> None:
    beyond = {"padding": 4294967295, "eos": len(VOCABULARY), "eot": 70_000}
    assert tokenized({name: byte_level("gpt-2", **{name: token}) for name, token in beyond.items()}, TEXTS[:3]) == {}
    path = write_gguf(
        tiny_model("llama", vocab_size=len(VOCABULARY)), edit=byte_level("gpt-2", **beyond), tokenizer=False
    )
    with pytest.warns(UserWarning, match=r"'tokenizer.ggml.eos_token_id' is \d+, which is not in its vocabulary"):
        loaded = load(str(path))
    assert loaded.tokenizer.eos_token is None and loaded.model.generation_config.eos_token_id is None


@pytest.mark.parametrize(
    ("edit", "error", "said"),
    [
        (byte_level("kimi-k2"), UnsupportedModelError, r"rule 'kimi-k2' \('tokenizer.ggml.pre'\)"),
        (
            lambda w: (byte_level("gpt-2")(w), w.kv_data[0]["tokenizer.ggml.token_type"].value.pop()),
            ModelLoadError,
            "entries",
        ),
    ],
)
def test_tokenizers_that_cannot_be_read(
    edit: Any, error: type[TruedepthError], said: str, tiny_model: Make, write_gguf: Make
) -> None:
    with pytest.raises(error, match=said):
        load(str(write_gguf(tiny_model("llama", vocab_size=len(VOCABULARY)), edit=edit, tokenizer=False)))


def test_a_file_that_does_not_say_how_to_split_is_told(tiny_model: Make, write_gguf: Make) -> None:
    path = write_gguf(tiny_model("llama", vocab_size=len(VOCABULARY)), edit=byte_level(None), tokenizer=False)
    with pytest.warns(UserWarning, match=r"split by llama\.cpp's rule for such files"):
        load(str(path))


def scaled(architecture: str = "llama", kind: str | None = None, **values: float) -> tuple[str, Callable[[Any], None]]:
    def edit(writer: Any) -> None:
        byte_level("gpt-2")(writer)
        if kind is not None:
            writer.add_string(f"{architecture}.rope.scaling.type", kind)
        for name, value in values.items():
            key = f"{architecture}.rope.{name.replace('__', '.')}"
            (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(key, value)

    return architecture, edit


YARN = {"kind": "yarn", "scaling__factor": 4.0, "scaling__original_context_length": 32}
SCALINGS = {
    "a factor without a type": scaled(scaling__factor=4.0),
    "the old name of the factor": scaled(scale_linear=2.0),
    "a factor that the type says is none": scaled(kind="none", scaling__factor=4.0),
    "a factor of 0": scaled(kind="linear", scaling__factor=0.0),
    "yarn": scaled(**YARN),
    "yarn without its original length": scaled(kind="yarn", scaling__factor=2.0),
    "yarn and an attention factor": scaled(**YARN, scaling__attn_factor=1.4),
    "yarn and an attention factor, qwen2": scaled("qwen2", **YARN, scaling__attn_factor=0.8),
    "yarn and what llama.cpp reads elsewhere": scaled(
        **YARN,
        scaling__yarn_attn_factor=2.0,
        scaling__yarn_ext_factor=0.0,
        scaling__yarn_log_multiplier=1.0,
        scaling__yarn_beta_fast=8.0,
        scaling__yarn_beta_slow=2.0,
    ),
    "another base": scaled(freq_base=500.0),
}


def test_scaled_positions(tiny_model: Make, token_ids: Make, write_gguf: Make, llama_cpp: Make) -> None:
    prompt = token_ids(1, 60, seed=3)
    files, requests = {}, []
    for number, (name, (architecture, edit)) in enumerate(SCALINGS.items()):
        model = tiny_model(architecture, vocab_size=len(VOCABULARY), hidden_size=64)
        files[name] = write_gguf(model, architecture, edit=edit, tokenizer=False, name=f"{number}.gguf")
        requests.append({"path": str(files[name]), "prompt": prompt[0].tolist(), "tokens": 1})
    for (name, path), answer in zip(files.items(), llama_cpp(requests), strict=True):
        assert not isinstance(answer, str), f"{name}: {answer}"
        with torch.no_grad():
            logs = load(str(path), dtype="float32").model(prompt).logits[0, -1].log_softmax(-1)  # type: ignore[operator]
        off = max(abs(value - float(logs[int(token)])) for token, value in answer[0][1].items())
        assert off < 0.02, name


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope.scaling.attn_factor", 2.0),
        ("rope.scaling.type", "longrope"),
        ("attention.scale", 0.5),
        ("attention.clamp_kqv", 8.0),
        ("attention.max_alibi_bias", 8.0),
        ("attention.causal", False),
        ("attention.key_length_swa", 4),
        ("rope.dimension_sections", [1, 1, 2, 0]),
        ("rope.of_the_future", 1.0),
        ("attention.of_the_future", True),
        ("logit_scale", 0.5),
        ("expert_shared_count", 1),
        ("nextn_predict_layers", 1),
    ],
)
def test_keys_that_mean_another_model_are_refused(key: str, value: Any, tiny_model: Make, write_gguf: Make) -> None:
    def edit(writer: Any) -> None:
        kinds: dict[type, Any] = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
            list: writer.add_array,
        }
        kinds[type(value)](f"llama.{key}", value)

    with pytest.raises(UnsupportedModelError, match=re.escape(key.rpartition(".")[2] if "type" not in key else value)):
        load(str(write_gguf(tiny_model("llama"), edit=edit)))


def test_neutral_values_are_read(tiny_model: Make, write_gguf: Make, token_ids: Make) -> None:
    model = tiny_model("llama")

    def edit(writer: Any) -> None:
        writer.add_float32("llama.attention.clamp_kqv", 0.0)
        writer.add_bool("llama.attention.causal", True)
        writer.add_array("llama.rope.dimension_sections", [0, 0, 0, 0])
        writer.add_bool("llama.rope.scaling.finetuned", False)
        writer.add_string("llama.a_note", "no model is changed by this")

    loaded, ids = load(str(write_gguf(model, edit=edit))), token_ids(1, 9)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)  # type: ignore[operator]


def test_the_page_says_the_same_of_every_key() -> None:
    page = Path(__file__).parents[3] / "docs" / "gguf.md"
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| (read|neutral|refused|as its like)", page.read_text("utf-8"), re.M))
    known = {key: "read" for key in READ} | {key: "neutral" for key in NEUTRAL}
    known |= {key: "refused" for key in REFUSED} | {key: "as its like" for key in LIKE}
    assert {key: rows.get(key) for key in known} == known
