"""The tokenizer in a GGUF file, by transformers, with what its reader leaves out put right."""

from __future__ import annotations

from typing import TYPE_CHECKING

from truedepth.errors import ModelLoadError
from truedepth.models.gguf.splits import DIGITS_ALONE, WHOLE_WORDS_FIRST
from truedepth.records.messages import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from truedepth.models.gguf.file import GgufFile


def tokenizer_of(file: GgufFile) -> PreTrainedTokenizerBase:
    """The tokenizer of a GGUF file, with its chat template.

    Raises:
        ModelLoadError: the file has no tokenizer, or one that transformers cannot read.
    """
    from transformers import PreTrainedTokenizerFast

    if not file.metadata.get("tokenizer.ggml.tokens"):
        raise ModelLoadError(
            f"{file.path} has no tokenizer (no 'tokenizer.ggml.tokens' in its metadata); "
            "use a GGUF file of the whole model"
        )
    try:
        # The class itself and not AutoTokenizer, which would read the whole file once more.
        tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(
            str(file.path.parent), gguf_file=file.path.name, local_files_only=True
        )
    except Exception as error:
        raise ModelLoadError(
            f"the tokenizer in {file.path} cannot be read: {one_line(error)}; "
            "download the file again, or give the model's hub id or folder"
        ) from error
    _correct(tokenizer, file)
    return tokenizer


def _correct(tokenizer: PreTrainedTokenizerBase, file: GgufFile) -> None:
    from tokenizers import pre_tokenizers

    split = file.metadata.get("tokenizer.ggml.pre")
    backend = tokenizer.backend_tokenizer
    if split in DIGITS_ALONE:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if split in WHOLE_WORDS_FIRST:
        backend.model.ignore_merges = True
        if "tokenizer.ggml.add_bos_token" not in file.metadata:
            tokenizer.add_bos_token = True
