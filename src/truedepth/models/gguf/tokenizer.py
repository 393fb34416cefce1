"""The tokenizer in a GGUF file: transformers' vocabulary and merges, and everything around them as llama.cpp has it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from truedepth.errors import ModelLoadError, UnsupportedModelError
from truedepth.models.gguf.splits import SPLITS
from truedepth.models.private_transformers import gguf_tokenizer
from truedepth.records.messages import one_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

    from truedepth.models.gguf.file import GgufFile

BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"
"""The kinds of tokenizers that can be read, by `tokenizer.ggml.model`."""

SPECIAL_TOKENS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
_SPACE = "\u2581"
_TEMPLATE = "tokenizer.chat_template"


def tokenizer_of(file: GgufFile) -> PreTrainedTokenizerBase:
    """The tokenizer of a GGUF file, with its chat templates. Its token ids are llama.cpp's.

    Raises:
        ModelLoadError: the file has no tokenizer, or one that is damaged.
        UnsupportedModelError: a tokenizer of another kind, or one that splits text in a way that is not known.
    """
    from transformers import PreTrainedTokenizerFast

    tokens = _tokens(file)
    kind = file.metadata.get("tokenizer.ggml.model")
    if kind not in (BYTE_LEVEL, SENTENCEPIECE):
        raise UnsupportedModelError(
            f"{file.path} has a tokenizer of the kind '{kind}', which truedepth does not read from GGUF "
            f"(it reads {BYTE_LEVEL} and {SENTENCEPIECE}); give the model's hub id or folder"
        )
    try:
        backend = _backend(file)
    except Exception as error:
        raise ModelLoadError(
            f"the tokenizer in {file.path} cannot be read: {one_line(error)}; "
            "download the file again, or give the model's hub id or folder"
        ) from error
    starts_with_bos = _split_byte_level(backend, file) if kind == BYTE_LEVEL else _space_out(backend, file)
    special = {name: _token_id(file, key) for name, key in SPECIAL_TOKENS.items()}
    add_bos, add_eos = (file.metadata.get(f"tokenizer.ggml.add_{name}_token") for name in ("bos", "eos"))
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        add_bos_token=(starts_with_bos if add_bos is None else add_bos) and special["bos_token"] is not None,
        add_eos_token=bool(add_eos) and special["eos_token"] is not None,
        chat_template=_templates(file),
        clean_up_tokenization_spaces=False,
        **{name: None if token is None else tokens[token] for name, token in special.items()},
    )
    return tokenizer


def special_token(file: GgufFile, key: str) -> int | None:
    """The id under `tokenizer.ggml.KEY`; None where there is none, or, as in llama.cpp, one beyond the vocabulary."""
    token, size = file.metadata.get(f"tokenizer.ggml.{key}"), len(file.metadata.get("tokenizer.ggml.tokens", ()))
    if not isinstance(token, int) or isinstance(token, bool):
        return None
    return token if 0 <= token < size else None


def _token_id(file: GgufFile, key: str) -> int | None:
    """The same, with a warning."""
    found, said = special_token(file, key), file.metadata.get(f"tokenizer.ggml.{key}")
    if found is None and said is not None:
        warnings.warn(
            f"{file.path} says that 'tokenizer.ggml.{key}' is {said}, which is not in its vocabulary; "
            "it is done without that token",
            stacklevel=4,
        )
    return found


def _tokens(file: GgufFile) -> list[str]:
    """All tokens, whose types and scores are there too."""
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        raise ModelLoadError(
            f"{file.path} has no tokenizer (no 'tokenizer.ggml.tokens' in its metadata); "
            "use a GGUF file of the whole model"
        )
    for name in ("token_type", "scores"):
        entries = file.metadata.get(f"tokenizer.ggml.{name}")
        if entries is not None and len(entries) < len(tokens):
            raise ModelLoadError(
                f"{file.path} has {len(tokens)} tokens, but 'tokenizer.ggml.{name}' has {len(entries)} entries; "
                "download the file again, or convert the model again"
            )
    return list(tokens)


def _backend(file: GgufFile) -> Tokenizer:
    names = {"model": "tokenizer_type", "token_type": "token_type", "tokens": "tokens", "scores": "scores"}
    names["merges"] = "merges"
    held = {name: file.metadata.get(f"tokenizer.ggml.{key}") for key, name in names.items()}
    return gguf_tokenizer(file.architecture, {name: value for name, value in held.items() if value is not None})


def _split_byte_level(backend: Any, file: GgufFile) -> bool:
    """Split text as the file says; returns whether a text starts with BOS where the file does not say."""
    from tokenizers import Regex, pre_tokenizers

    name = file.metadata.get("tokenizer.ggml.pre")
    if not name:
        warnings.warn(
            f"{file.path} does not say how its tokenizer splits text ('tokenizer.ggml.pre'), so it is split by "
            "llama.cpp's rule for such files, which may not be the model's; convert the model again if you can",
            stacklevel=4,
        )
    split = SPLITS.get(name or "default")
    if split is None:
        raise UnsupportedModelError(
            f"{file.path} splits text by the rule '{name}' ('tokenizer.ggml.pre'), which truedepth does not know; "
            "give the model's hub id or folder"
        )
    steps: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in split.patterns]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.model.ignore_merges = split.whole_words
    return split.starts_with_bos


def _space_out(backend: Any, file: GgufFile) -> bool:
    """Write spaces as SentencePiece does, one more in front of a text unless the file says otherwise.

    Returns whether a text starts with BOS where the file does not say.
    """
    from tokenizers import decoders, normalizers

    prefixed = file.metadata.get("tokenizer.ggml.add_space_prefix", True)
    if file.architecture.startswith("gemma") and not prefixed:
        return True  # transformers knows these, whose runs of spaces are tokens
    steps: list[Any] = [normalizers.Prepend(_SPACE)] if prefixed else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    backend.pre_tokenizer = None
    if not prefixed:
        backend.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return True


def _templates(file: GgufFile) -> str | dict[str, str] | None:
    """The chat template, or several by name."""
    named = {
        key.removeprefix(f"{_TEMPLATE}."): text
        for key, text in file.metadata.items()
        if key.startswith(f"{_TEMPLATE}.")
    }
    default: str | None = file.metadata.get(_TEMPLATE)
    if not named:
        return default
    return named | ({"default": default} if default else {})
