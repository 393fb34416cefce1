"""Tokens of one sequence as text, a piece at a time."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


class TextWriter:
    """Collects a sequence's new tokens as text, and says when a stop string has come.

    Args:
        stop: strings before which the text ends.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids: list[int] = []

    def add(self, token: int) -> bool:
        """Take one more token; whether the text now holds a stop string."""
        self._ids.append(token)
        return bool(self._stop) and any(stop in self._decode() for stop in self._stop)

    def finish(self) -> str:
        """The whole text, cut before the first stop string."""
        text = self._decode()
        return text[: min([len(text), *(text.index(stop) for stop in self._stop if stop in text)])]

    def _decode(self) -> str:
        return str(self._tokenizer.decode(self._ids, skip_special_tokens=True))
