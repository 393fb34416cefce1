"""Tokens of one sequence as text, a piece at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from transformers import PreTrainedTokenizerBase

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer writes for bytes that are no whole character, or not yet."""

_MOST_WAITING = 64
"""Tokens that wait for a whole character at most, so that many without any text cost no more than others."""


class StopChecker(Protocol):
    """Looks at a sequence's new tokens as they come, and may end it."""

    def add(self, token: int) -> bool:
        """Take one more token; whether the sequence ends with it."""
        ...

    def finish(self) -> str:
        """The sequence's new text; called when no token comes any more, and perhaps again."""
        ...


class IncrementalDetokenizer:
    """Collects a sequence's new tokens as text, and ends it where a stop string comes.

    Special tokens have no text. Each token costs as much as the few before it, however long the text is.

    Args:
        stop: strings before which the text ends. The one that is complete first counts, the longest of several.

    Attributes:
        texts: for each token the text that became final with it; together they are the text. A token that may be
            followed by the rest of a character or of a stop string leaves its text to a later one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self._detokenizer, self._stop = _Detokenizer(tokenizer), tuple(stop)
        self._held = ""  # may be the beginning of a stop string
        self._ended = False
        self.texts: list[str] = []

    def add(self, token: int) -> bool:
        """Take one more token; whether the text now holds a stop string."""
        self.texts.append(self._take(self._detokenizer.add(token)))
        return self._ended

    def finish(self) -> str:
        """The whole text, cut before the first stop string; what was held back now belongs to the last token."""
        rest = self._take(self._detokenizer.finish())
        if not self._ended:
            rest, self._held, self._ended = rest + self._held, "", True
        if rest:
            self.texts[-1] += rest
        return "".join(self.texts)

    def _take(self, text: str) -> str:
        """What of the text held back and this is final."""
        if self._ended:
            return ""
        text, self._held = self._held + text, ""
        found = [(text.index(stop) + len(stop), text.index(stop)) for stop in self._stop if stop in text]
        if found:
            self._ended = True
            return text[: min(found)[1]]
        kept = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[kept:]
        return text[:kept]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)


class _Detokenizer:
    """Text of tokens as it becomes whole characters.

    What a token's text is can depend on those before it (a space, the rest of a character), so it is told from the
    tokens since the last whole character, and those that made it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = []
        self._waiting: list[int] = []
        self._text_before = ""

    def add(self, token: int) -> str:
        self._waiting.append(token)
        text = self._decode(self._before + self._waiting)
        new = text[len(self._text_before) :]
        if (not new or new.endswith(_UNFINISHED)) and len(self._waiting) < _MOST_WAITING:
            return ""
        self._before, self._waiting = self._waiting, []
        self._text_before = self._decode(self._before)
        return new

    def finish(self) -> str:
        """What is still waiting, as it is."""
        new = self._decode(self._before + self._waiting)[len(self._text_before) :]
        self._before, self._waiting, self._text_before = [], [], ""
        return new

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
