"""Where a chat template says by itself what the assistant's is: between `{% generation %}` and `{% endgeneration %}`.

transformers' own mask of such a template runs on where a response ends with a character of several tokens, or one that
comes to no token, and cuts the last of several tokens off. The borders are therefore found here: the template is
applied once more with a mark at each of them.
"""

from __future__ import annotations

import copy
import re
from typing import Any

from transformers import PreTrainedTokenizerBase

from truedepth.errors import TextError

_BEGINS = re.compile(r"\{%([-+]?)\s*generation\s*([-+]?)%\}")
_ENDS = re.compile(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}")

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
"""The marks. Unicode keeps these two for such use: no text has them."""


def marks_responses(template: str) -> bool:
    """Whether a chat template says where responses are."""
    return bool(_BEGINS.search(template))


def with_marks(template: str) -> str:
    """The template in plain Jinja, which writes a mark at each border and the same text otherwise.

    The last tag is there for the line end after it, which Jinja drops after tags and not after values.
    """
    opened = _BEGINS.sub(r"{%\1 set marked_response \2%}", template)
    value = f"{{{{ '{_OPEN}' ~ marked_response ~ '{_CLOSE}' }}}}"
    return _ENDS.sub(rf"{{%\1 endset %}}{value}{{% if true %}}{{% endif \2%}}", opened)


def without_marks(text: str) -> str:
    return text.replace(_OPEN, "").replace(_CLOSE, "")


class ResponseTokens:
    """Tells which tokens of a conversation are in its responses.

    Raises:
        TextError: the tokenizer does not say which characters a token comes from.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            raise TextError(
                f"the chat template marks responses ({{% generation %}}), but a {type(tokenizer).__name__} does not "
                "say which characters a token comes from; use a tokenizer with a tokenizer.json"
            )
        backend: Any = tokenizer.backend_tokenizer
        self._backend = copy.deepcopy(backend)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.post_processor = None  # it may leave spaces out of the characters that a token comes from

    def mask(self, marked: str, ids: list[int], where: object) -> list[bool]:
        """For each token whether it is in a response.

        Args:
            marked: the conversation with marks.
            ids: its tokens.
            where: what to name in errors.

        Raises:
            TextError: a token is in a response with a part of it only, or these are other tokens.
        """
        inside = bytearray()
        for part in re.split(f"(?={_OPEN}|{_CLOSE})", marked):
            inside += (b"\1" if part.startswith(_OPEN) else b"\0") * len(without_marks(part))
        encoding = self._backend.encode(without_marks(marked), add_special_tokens=False)
        if encoding.ids != ids:
            raise TextError(
                f"{where}: it cannot be told which characters the tokens come from; use a chat template without "
                "{% generation %}"
            )
        return [
            self._is_inside(inside, token, offsets, where) for token, offsets in zip(ids, encoding.offsets, strict=True)
        ]

    def _is_inside(self, inside: bytearray, token: int, offsets: tuple[int, int], where: object) -> bool:
        start, stop = offsets
        characters = set(inside[start : max(stop, start + 1)])
        if len(characters) > 1:
            raise TextError(
                f"{where}: the token {self._backend.decode([token], skip_special_tokens=False)!r} is in a response "
                "with one part and outside of it with the other; move the border of {% generation %} in the chat "
                "template, so that no token lies across it: a space belongs to the word after it"
            )
        return characters == {1}
