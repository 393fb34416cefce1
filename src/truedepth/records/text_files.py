"""Reading text that people give, as UTF-8, and refusing what no tokenizer can read."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import Any

from truedepth.errors import TruedepthError

_BYTE_ORDER_MARK = "\ufeff"

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def read_text(path: Path, what: str, error: type[TruedepthError]) -> str:
    """A text file (UTF-8), without a byte order mark at its head.

    Args:
        what: what the file should be, with its article, such as "a plan file".
        error: the class of the errors raised.

    Raises:
        TruedepthError: (of class `error`) the file cannot be read, or `decode_text` refuses it.
    """
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise error(f"cannot read {path}: {problem.strerror}; give {what}") from None
    return decode_text(data, str(path), error)


def decode_text(data: bytes, name: str, error: type[TruedepthError]) -> str:
    """Bytes as text, without a byte order mark at their head; `name` says in messages where they came from.

    Raises:
        TruedepthError: (of class `error`) they are UTF-16, not UTF-8, or have a NUL byte.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise error(f"{name} is UTF-16 text; save it as UTF-8")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise error(f"{name} is not UTF-8 text (byte {problem.start}); save it as UTF-8") from None
    if "\0" in text:
        raise error(f"{name} has a NUL byte (byte {data.index(0)}), so it is no text, or UTF-16; save it as UTF-8")
    return text.removeprefix(_BYTE_ORDER_MARK)


def refuse_lone_surrogates(value: Any, name: str, error: type[TruedepthError]) -> None:
    r"""Refuse text with halves of UTF-16 characters, which JSON (`"\ud800"`) and bytes in arguments can bring.

    Args:
        value: a string, or lists and dicts with strings in them.

    Raises:
        TruedepthError: (of class `error`) there is one.
    """
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if found := _LONE_SURROGATE.search(text):
        raise error(
            f"{name} has U+{ord(found[0]):04X}, which is half of a character, or a byte that is not UTF-8; correct it, "
            "or put U+FFFD in its place"
        )
