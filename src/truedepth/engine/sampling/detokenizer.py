"""Tokens of one sequence as text, a piece at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer writes for bytes that are no whole character, or not yet."""

_MOST_WAITING = 64
"""Tokens that wait for a whole character at most, so that many without any text cost no more than others."""

_CONTEXT = 8
"""Tokens of the prompt by which the first new ones are read, where these have any text."""


class StopChecker(Protocol):
    """Looks at a sequence's new tokens as they come, and may end it."""

    def add(self, token: int, *, ends: bool = False) -> bool:
        """Take one more token; whether the sequence ends with it.

        Args:
            ends: it does so anyhow, as an end token.
        """
        ...

    def finish(self) -> str:
        """The sequence's new text; called when no token comes any more, and perhaps again."""
        ...


class IncrementalDetokenizer:
    """Collects a sequence's new tokens as text, and ends it where a stop string comes.

    The text is what they add to the prompt when both are decoded together, without special tokens and end tokens. Stop
    strings are looked for as transformers does: special tokens count with their names, and a stop string may begin in
    the prompt. Each token costs as much as the few before it, however long the text is.

    Args:
        stop: strings before which the text ends. The one that is complete first counts, the longest of several.
        prompt_ids: the tokens before the new ones.

    Attributes:
        texts: for each token the text that became final with it; together they are the text. A token that may be
            followed by the rest of a character or of a stop string leaves its text to a later one.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = (), prompt_ids: Sequence[int] = ()
    ) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._detokenizer = _Detokenizer(tokenizer, prompt_ids)
        self._special = _special_ids(tokenizer) if stop else frozenset()
        self._held = ""  # may be the beginning of a stop string
        self._shown: list[bool] = []  # which characters of that are text
        self._ended = False
        self.texts: list[str] = []
        if stop and prompt_ids:
            # A token has a byte at least.
            tail = list(prompt_ids)[-max(len(word.encode()) for word in stop) :]
            self._hold(self._decode(tail), shown=False)

    def add(self, token: int, *, ends: bool = False) -> bool:
        """Take one more token; whether the text now holds a stop string."""
        if token in self._special:
            name: Any = self._tokenizer.convert_ids_to_tokens(token)
            self.texts.append(self._take(name, shown=False))
        elif ends:
            self.texts.append(self._take(self._decode([token]), shown=False) if self._stop else "")
        else:
            self.texts.append(self._take(self._detokenizer.add(token)))
        return self._ended

    def finish(self) -> str:
        """The whole text, cut before the first stop string; what was held back now belongs to the last token."""
        rest = self._take(self._detokenizer.finish())
        if not self._ended:
            rest += self._release(len(self._held))
            self._ended = True
        if rest:
            self.texts[-1] += rest
        return "".join(self.texts)

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _take(self, text: str, *, shown: bool = True) -> str:
        """What of the text held back and this is final."""
        if self._ended:
            return ""
        searched = len(self._held)
        self._hold(text, shown=shown)
        found = [
            (at + len(stop), at)
            for stop in self._stop
            if (at := self._held.find(stop, max(0, searched - len(stop) + 1))) >= 0
        ]
        if found:
            self._ended = True
            return self._release(min(found)[1])
        return self._release(len(self._held) - max((_overlap(self._held, stop) for stop in self._stop), default=0))

    def _hold(self, text: str, *, shown: bool) -> None:
        self._held += text
        self._shown += [shown] * len(text)

    def _release(self, count: int) -> str:
        """Let the first characters held back go; what of them is text."""
        text = "".join(char for char, shown in zip(self._held[:count], self._shown, strict=False) if shown)
        self._held, self._shown = self._held[count:], self._shown[count:]
        return text


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that are left out of text."""
    added = (token for token, content in tokenizer.added_tokens_decoder.items() if content.special)
    return frozenset([*tokenizer.all_special_ids, *added])


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)


class _Detokenizer:
    """Text of tokens as it becomes whole characters.

    What a token's text is can depend on those before it (a space, the rest of a character), so it is told from the
    tokens since the last whole character, and those that made it: at first, from the last tokens of the prompt.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._waiting: list[int] = []
        size = _CONTEXT
        self._before = list(prompt_ids)[-size:]
        self._written = self._decode(self._before)
        # Without text before it, the first token would lose its space; bytes are read from the first of a character.
        while size < len(prompt_ids) and (not self._written or self._is_cut(size)):
            size += 1 if self._written else size
            self._before = list(prompt_ids)[-size:]
            self._written = self._decode(self._before)

    def add(self, token: int) -> str:
        self._waiting.append(token)
        new = self._new()
        whole = new.rstrip(_UNFINISHED)
        if (new and whole == new) or len(self._waiting) >= _MOST_WAITING:
            self._before, self._waiting = self._waiting, []
            self._written = self._decode(self._before)
            return new
        self._written += whole
        return whole

    def finish(self) -> str:
        """What is still waiting, as it is."""
        new = self._new() if self._waiting else ""
        self._before, self._waiting, self._written = [], [], ""
        return new

    def _is_cut(self, size: int) -> bool:
        return self._written.startswith(_UNFINISHED) and size < 2 * _CONTEXT

    def _new(self) -> str:
        """What the tokens that wait add to what is written."""
        text = self._decode(self._before + self._waiting)
        if text.startswith(self._written):
            return text[len(self._written) :]
        if self._written.endswith(_UNFINISHED):
            return text.removeprefix(self._written.rstrip(_UNFINISHED))  # it was the beginning of a character
        return self._decode(self._waiting)  # bytes that are no character make those before them none either

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
