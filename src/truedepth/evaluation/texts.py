"""Text to judge a model on, in three splits that share nothing: calibration, validation and test.

The search and the methods look at calibration text, the search picks its winner on validation text, and the
figures that a user is shown come from test text.
"""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from truedepth.errors import TextError
from truedepth.records.schema import Record
from truedepth.records.text_files import read_text


class TextRecord(Record):
    """Where the text came from, and the size of each split."""

    source: str
    calibration_tokens: int
    validation_tokens: int
    test_tokens: int

    @classmethod
    def of(cls, texts: Texts) -> TextRecord:
        return cls(
            source=texts.source,
            calibration_tokens=texts.calibration.numel(),
            validation_tokens=texts.validation.numel(),
            test_tokens=texts.test.numel(),
        )


WINDOW = 128
"""Tokens of one window, the special token at its start (where the tokenizer has one) included."""

SPLITS = ("calibration", "validation", "test")

_MODULES = """
argparse ast bisect calendar cmd collections/__init__ configparser contextlib copy csv dataclasses datetime decimal
difflib doctest enum filecmp fractions functools gettext glob gzip hashlib heapq http/client http/server imaplib
inspect
ipaddress json/decoder locale logging/__init__ logging/handlers mailbox mimetypes netrc ntpath numbers optparse os
pathlib
pdb pickle pickletools platform plistlib poplib posixpath pprint profile pstats queue random selectors shelve shlex
shutil
smtplib socket socketserver ssl statistics string subprocess tarfile tempfile textwrap threading timeit tokenize trace
traceback turtle types typing unittest/case unittest/mock urllib/parse urllib/request uuid warnings weakref webbrowser
zipfile
"""
"""Modules of the standard library that are plain Python in every supported version."""


@dataclass(frozen=True)
class Texts:
    """Windows of token ids, (N, WINDOW) int64 each.

    Attributes:
        source: where the text came from, in words.
    """

    source: str
    calibration: Tensor
    validation: Tensor
    test: Tensor


@dataclass(frozen=True)
class Sizes:
    """How many windows each split gets."""

    calibration: int = 3
    validation: int = 12
    test: int = 12

    def __iter__(self) -> Iterator[int]:
        return iter((self.calibration, self.validation, self.test))


def read_texts(path: Path | None, tokenizer: PreTrainedTokenizerBase, sizes: Sizes, seed: int = 0) -> Texts:
    """The text of a user's file, or the default where there is none. See `file_texts` and `default_texts`."""
    if path is not None:
        return file_texts(path, tokenizer, sizes)
    return default_texts(tokenizer, sizes, seed)


def default_texts(tokenizer: PreTrainedTokenizerBase, sizes: Sizes, seed: int = 0) -> Texts:
    """Text that is always there: Python's language reference (`pydoc_data.topics`) and standard library source.

    Prose and source alternate, window by window. No paragraph of prose and no module is in two splits.

    Args:
        seed: which documents of their split calibration and validation draw. The test text is always the same.
    """
    prose, code = default_documents(seed)
    splits = []
    for kind, count in enumerate(sizes):
        windows = [
            _windows(tokenizer, documents[kind], share)
            for documents, share in ((prose, (count + 1) // 2), (code, count // 2))
        ]
        in_turn = [window for pair in zip_longest(*windows) for window in pair if window is not None]
        splits.append(torch.stack(in_turn))
    return Texts("Python's language reference and standard library source", *splits)


def default_documents(seed: int = 0) -> tuple[list[list[str]], list[list[str]]]:
    """The documents of the default text, prose and source, each in the three splits."""
    return _split(_topics(), seed), _split(_modules(), seed)


def file_texts(path: Path, tokenizer: PreTrainedTokenizerBase, sizes: Sizes) -> Texts:
    """A user's text file (UTF-8), cut into consecutive thirds by the sizes asked for.

    Raises:
        TextError: the file cannot be read, is not UTF-8 text, or is too short.
    """
    text = read_text(path, "a readable text file", TextError)
    needed = sum(sizes)
    windows = _windows(tokenizer, [text], needed)
    if len(windows) < needed:
        raise TextError(
            f"text file '{path}' is too short: it fills {len(windows)} windows of {WINDOW} tokens and {needed} are "
            f"needed ({', '.join(f'{size} for {split}' for size, split in zip(sizes, SPLITS, strict=True))}); "
            f"give about {needed * WINDOW * 5 // 1000 + 1} kB of text"
        )
    calibration, validation, test = windows.split(list(sizes))
    return Texts(str(path), calibration, validation, test)


def _topics() -> list[str]:
    """Prose of the language reference. Topics repeat each other's sections, so each paragraph is kept once."""
    from pydoc_data.topics import topics

    seen: set[str] = set()
    documents = []
    for name in sorted(topics):
        fresh = [part for part in topics[name].split("\n\n") if part.strip() and part not in seen]
        seen.update(fresh)
        documents.append("\n\n".join(fresh))
    return [document for document in documents if len(document) > 1000]


def _modules() -> list[str]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = (folder / f"{name}.py" for name in _MODULES.split())
    return [file.read_text(encoding="utf-8") for file in files if file.is_file()]


def _split(documents: list[str], seed: int) -> list[list[str]]:
    """Deal documents out to the three splits, and shuffle each split."""
    splits = [documents[index :: len(SPLITS)] for index in range(len(SPLITS))]
    for name, split in zip(SPLITS, splits, strict=True):
        random.Random(0 if name == "test" else seed).shuffle(split)
    return splits


def _windows(tokenizer: PreTrainedTokenizerBase, documents: Iterable[str], count: int) -> Tensor:
    """Up to `count` windows, taking one from each document in turn so that few tokens cover many documents."""
    start = special_start(tokenizer)
    step = WINDOW - len(start)
    streams = [_cut(tokenizer, document, step, count) for document in documents]
    rows = [start + row for turn in zip_longest(*streams) for row in turn if row is not None]
    return torch.tensor(rows[:count], dtype=torch.int64).reshape(-1, WINDOW)


def _cut(tokenizer: PreTrainedTokenizerBase, document: str, step: int, count: int) -> Iterator[list[int]]:
    # A token is rarely longer than 16 characters: tokenise no more of a long document than can be needed.
    ids: list[int] = tokenizer(document[: count * step * 16], add_special_tokens=False, verbose=False).input_ids
    for begin in range(0, len(ids) - step + 1, step):
        yield ids[begin : begin + step]


def special_start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The beginning-of-text token, for tokenizers that put one there (Llama 2, Gemma)."""
    ids = tokenizer("a").input_ids
    return ids[:1] if ids and ids[0] == tokenizer.bos_token_id else []
