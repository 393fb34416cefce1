"""The tokenizer of a GGUF file: made from a `tokenizer.json`, or carried over from another GGUF file as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truedepth.errors import UnsupportedModelError
from truedepth.models.gguf.architectures import TOKEN_IDS
from truedepth.models.gguf.splits import split_name

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from truedepth.models.gguf.file import GgufFile

_SPACE = "\u2581"
"""What SentencePiece writes for a space."""
_OTHERWISE = (
    "export the model from a GGUF file that llama.cpp's converter made, whose tokenizer is carried over as it is"
)


_CARRIED = ("general.", "tokenizer.")
_OF_THE_OTHER = {"architecture", "type", "size_label", "file_type", "quantization_version", "alignment"}
"""Of another file's general metadata, what is not true of a new one."""


def carry_over(writer: GGUFWriter, file: GgufFile) -> None:
    """Write another file's tokenizer, with its types and bytes, and what it says of the model's origin and licence."""
    import gguf

    for key, (kind, element, value) in file.typed.items():
        carried = key.startswith(_CARRIED) and key.removeprefix("general.") not in _OF_THE_OTHER
        if carried and value != []:  # gguf-py refuses empty arrays, which mean nothing
            sub_type = None if element is None else gguf.GGUFValueType(element)
            writer.add_key_value(key, value, gguf.GGUFValueType(kind), sub_type)


def write_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Write a byte-level or SentencePiece tokenizer that merges pairs, its special tokens and its chat template.

    Raises:
        UnsupportedModelError: it is of another kind, or llama.cpp has no name for how it splits text.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UnsupportedModelError(f"the model's tokenizer is a Python one without a tokenizer.json; {_OTHERWISE}")
    description = json.loads(backend.to_str())
    kind = description["model"]["type"]
    if kind != "BPE":
        raise UnsupportedModelError(f"the model's tokenizer is of the kind '{kind}', not BPE; {_OTHERWISE}")
    if description["model"].get("byte_fallback"):
        _write_sentencepiece(writer, tokenizer, description, config.vocab_size)
    else:
        _write_byte_level(writer, tokenizer, description, config.vocab_size)
    _write_special(writer, tokenizer)
    _write_name(writer, Path(config.name_or_path or "").name, description)


def _write_byte_level(writer: GGUFWriter, tokenizer: Any, description: dict[str, Any], size: int) -> None:
    split = split_name(description)
    normalizer = (description.get("normalizer") or {"type": None})["type"]
    if split is None or normalizer not in (None, "NFC"):
        raise UnsupportedModelError(
            f"llama.cpp has no name that truedepth knows for how the model's tokenizer splits text; {_OTHERWISE}"
        )
    tokens, types = _vocabulary(tokenizer, description, size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    # llama.cpp wants a merge at least; what a text is split into is never this pair.
    writer.add_token_merges([" ".join(pair) for pair in _merges(description)] or ["<none> <none>"])


def _write_sentencepiece(writer: GGUFWriter, tokenizer: Any, description: dict[str, Any], size: int) -> None:
    """llama.cpp merges the pair whose piece has the highest score. transformers made the ranks of merges from
    SentencePiece's scores, so that they are as good."""
    import gguf

    tokens, types = _vocabulary(tokenizer, description, size)
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(_merges(description)):
        ranks.setdefault(left + right, rank)
    for index, token in enumerate(tokens):
        if types[index] == gguf.TokenType.NORMAL and len(token) == 6 and token.startswith("<0x") and token[5] == ">":
            types[index] = gguf.TokenType.BYTE
    unknown = description["model"].get("unk_token")
    if unknown in tokens:
        types[tokens.index(unknown)] = gguf.TokenType.UNKNOWN
        writer.add_unk_token_id(tokens.index(unknown))
    byte = gguf.TokenType.BYTE
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(
        [0.0 if types[i] == byte else -float(ranks.get(t, len(ranks))) for i, t in enumerate(tokens)]
    )
    writer.add_token_types(types)
    writer.add_add_space_prefix(_spaces_first(description))


def _spaces_first(description: dict[str, Any]) -> bool:
    """Whether a space is put in front of a text."""
    steps = list(_parts(description.get("normalizer"))) + list(_parts(description.get("pre_tokenizer")))
    if any(step["type"] == "Prepend" for step in steps):
        return True
    return any(step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never" for step in steps)


def _parts(step: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if step is not None:
        inner = step.get("normalizers") or step.get("pretokenizers")
        yield from (part for entry in inner for part in _parts(entry)) if inner else (step,)


def _merges(description: dict[str, Any]) -> list[tuple[str, str]]:
    """Pairs, which older files write as one string."""
    pairs: list[tuple[str, str]] = []
    for merge in description["model"]["merges"]:
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        pairs.append((left, right))
    return pairs


def _vocabulary(tokenizer: Any, description: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Texts and types of all rows of the embedding, those without a token too."""
    import gguf

    kinds = gguf.TokenType
    tokens, types = [f"[PAD{index}]" for index in range(size)], [int(kinds.UNUSED)] * size
    vocabulary = tokenizer.get_vocab()
    beyond = [token for token, index in vocabulary.items() if index >= size]
    if beyond:
        raise UnsupportedModelError(
            f"the tokenizer has {len(beyond)} tokens, such as {beyond[0]!r}, without a row in the model's embedding of "
            f"{size}; use the model's own tokenizer"
        )
    for token, index in vocabulary.items():
        tokens[index], types[index] = token, int(kinds.NORMAL)
    for added in description["added_tokens"]:
        types[added["id"]] = int(kinds.CONTROL if added["special"] else kinds.USER_DEFINED)
        if not added["special"] and description["model"].get("byte_fallback"):
            # llama.cpp looks for these in the text itself.
            tokens[added["id"]] = added["content"].replace(_SPACE, " ")
    return tokens, types


def _write_special(writer: GGUFWriter, tokenizer: Any) -> None:
    for key, name in TOKEN_IDS.items():
        if (token := getattr(tokenizer, name)) is not None:
            writer.add_uint32(f"tokenizer.ggml.{key}", token)
    # What it does, whichever of its settings says so.
    ids = tokenizer("a").input_ids
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id])
    writer.add_add_eos_token(tokenizer.eos_token_id is not None and ids[-1:] == [tokenizer.eos_token_id])
    template = tokenizer.chat_template
    if isinstance(template, dict):
        writer.add_chat_template([{"name": name, "template": text} for name, text in template.items()])
    elif template:
        writer.add_chat_template(template)


def _write_name(writer: GGUFWriter, name: str, description: dict[str, Any]) -> None:
    """llama.cpp tells by a model's name whether spaces after special tokens are dropped, as Phi-3 does, and then wants
    that model's tokens."""
    called_so = any(word in name.lower() for word in ("phi-3", "phi3"))
    its_tokens = {added["content"] for added in description["added_tokens"]} >= {"<unk>", "<s>", "<|endoftext|>"}
    drops = its_tokens and any(added["rstrip"] for added in description["added_tokens"])
    if name and called_so == drops:
        writer.add_name(name)
    elif drops:
        writer.add_name(f"{name} (Phi-3)".strip())
