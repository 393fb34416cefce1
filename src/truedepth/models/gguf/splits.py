"""How byte-level tokenizers split text before merging, by the names that llama.cpp has for it.

A GGUF file has only a name under `tokenizer.ggml.pre`; a `tokenizer.json` describes the steps. Both sides follow
src/llama-vocab.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_DIGITS, _GPT2 = "digits one by one", "as GPT-2"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CL100K = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_REST_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _cased(after: str, number: str) -> str:
    before = r"[^\r\n\p{L}\p{N}]?"
    words = f"{before}{_UPPER}*{_LOWER}+{after}|{before}{_UPPER}+{_LOWER}*{after}"
    return f"{words}|{number}|{_REST_SLASH}"


@dataclass(frozen=True, slots=True)
class Split:
    """How llama.cpp splits a text before it merges.

    Attributes:
        patterns: one after the other, each on the pieces that those before have left: what matches is a piece.
        whole_words: a piece that is a token is that token, whatever the merges say.
        starts_with_bos: whether a text starts with BOS where the file does not say.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    starts_with_bos: bool = False


_ENDS = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = rf"{_ENDS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN = rf"{_ENDS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
_MARKS = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SEED = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_DEEPSEEK_CODER = (
    r"[\r\n]",
    r"\s?\p{L}+",
    r"\s?\p{P}+",
    "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
    r"\p{N}",
)
_THREES = "[0-9][0-9][0-9]"


def _cased_ascii(after: str, number: str) -> str:
    """As llama.cpp has it: only the case of ASCII letters counts."""
    before, upper, lower = r"[^\r\n\p{L}\p{N}]?", r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])"
    return f"{before}{upper}*{lower}+{after}|{before}{upper}+{lower}*{after}|{number}|{_REST_SLASH}"


_OF_NAMES: dict[str, Split] = {
    "default": Split((r"[\p{P}\$\+<=>\^~\|]+", _WORDS, r"\p{N}+", _THREES)),
    "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert exaone4 mpt olmo jais "
    "trillion granite-docling": Split((_WORDS,)),
    "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2": Split((r"\p{N}", _WORDS)),
    "falcon": Split((r"[\p{P}\$\+<=>\^~\|`]+", _WORDS, _THREES)),
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": Split((_LLAMA3,), True, True),
    "dbrx smaug-bpe": Split((_LLAMA3,)),
    "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2": Split((_QWEN,)),
    "qwen35": Split((rf"{_ENDS}|{_MARKS}",)),
    "seed-coder": Split((rf"{_ENDS}|{_SEED}",)),
    "tekken": Split((_cased_ascii("", r"\p{N}"),), True, True),
    "gpt-4o llama4 kanana2 talkie minimax-m2": Split((_cased_ascii(f"{_ENDS}?", r"\p{N}{1,3}"),)),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": Split(_DEEPSEEK3),
    "deepseek-coder": Split(_DEEPSEEK_CODER),
}

SPLITS = {name: split for names, split in _OF_NAMES.items() for name in names.split()}
"""The values of `tokenizer.ggml.pre` that can be read; llama.cpp has more, for models of other architectures."""

# Steps, and whether a piece that is a token is taken whole (None: it makes no difference to the name).
_NAMES: dict[tuple[tuple[str, ...], bool | None], str] = {
    ((_GPT2,), None): "gpt-2",
    ((_DIGITS, _GPT2), None): "smollm",
    ((_CL100K,), True): "llama-bpe",
    ((_CL100K,), False): "dbrx",
    ((_QWEN2,), None): "qwen2",
    ((_cased("", r"\p{N}"),), None): "tekken",
    ((_cased(rf"{_ENDINGS}?", r"\p{N}{1,3}"),), None): "gpt-4o",
}


def split_name(description: dict[str, Any]) -> str | None:
    """llama.cpp's name for how a tokenizer splits text, or None where it has none that truedepth knows.

    Args:
        description: a byte-level tokenizer, as in `tokenizer.json`.
    """
    steps = tuple(step for step in map(_step, _flat(description.get("pre_tokenizer"))) if step)
    whole = bool(description["model"].get("ignore_merges"))
    return _NAMES.get((steps, whole), _NAMES.get((steps, None)))


def _flat(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [inner for part in step["pretokenizers"] for inner in _flat(part)]
    return [step]


def _step(step: dict[str, Any]) -> str:
    """A word or a regular expression for one step; empty for mapping bytes to letters, which all have."""
    if step["type"] == "ByteLevel":
        prefixed = " and a space in front" if step.get("add_prefix_space") else ""
        return (_GPT2 if step.get("use_regex", True) else "") + prefixed
    if step["type"] == "Digits" and step.get("individual_digits"):
        return _DIGITS
    if step["type"] == "Split":
        # Either way of saying that what matches is a piece.
        pieces = (step["behavior"], bool(step.get("invert"))) in (("Isolated", False), ("Removed", True))
        return str(step["pattern"].get("Regex")) if pieces else "another split"
    return str(step["type"])
