"""How byte-level tokenizers split text before merging, by the names that llama.cpp has for it.

A GGUF file has only a name under `tokenizer.ggml.pre`; a `tokenizer.json` describes the steps. Both sides follow
src/llama-vocab.cpp.
"""

from __future__ import annotations

from typing import Any

DIGITS_ALONE = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
"""Each digit is a piece of its own before the text is split as GPT-2 does."""
WHOLE_WORDS_FIRST = {"llama3", "llama-v3", "llama-bpe", "tekken"}
"""A piece that is a token is that token, whatever the merges say; the text starts with BOS unless the file
says otherwise."""

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
