"""Items as tokens: which ones they are, and which of them the loss is over."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from truedepth.errors import TextError
from truedepth.records.messages import one_line
from truedepth.training.data.sources import Conversation, Document, Exchange, Item

_MARKS_RESPONSES = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""What a chat template has that says by itself which tokens are the assistant's."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """An item's tokens.

    Attributes:
        ids: token ids.
        loss_mask: for each, whether the model is trained to say it, given those before it.
    """

    ids: list[int]
    loss_mask: list[bool]


class Encoder:
    """Makes tokens of items, for one tokenizer.

    A document is its text and the end token. A prompt and its response are tokenised apart, as they are when a
    response is generated; the response ends with the end token. A conversation is what the tokenizer's chat template
    makes of it. Where the template does not mark responses itself, they are what each assistant message adds to the
    messages before it, the first message of all left out; a template that writes earlier messages differently once
    there are later ones leaves only the last response to be trained on.

    Args:
        responses: of conversations that are trained on: `all`, or the `last` one only.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, responses: Literal["all", "last"] = "all") -> None:
        self._tokenizer = tokenizer
        self._responses = responses
        self._end: list[int] = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self._template = _template(tokenizer)
        self._marks_responses = bool(self._template and _MARKS_RESPONSES.search(self._template))

    def encode(self, item: Item) -> Encoded:
        """The tokens of an item.

        Raises:
            TextError: there is no chat template, or it cannot write this conversation; nothing would be trained on.
        """
        if isinstance(item, Document):
            ids = self._start(item.text) + self._end
            return Encoded(ids, [True] * len(ids))
        if isinstance(item, Exchange):
            prompt = self._start(item.prompt)
            response = [*self._ids(item.response, add_special_tokens=False), *self._end]
            return Encoded(prompt + response, [False] * len(prompt) + [True] * len(response))
        encoded = self._conversation(item)
        if not any(encoded.loss_mask):
            raise TextError(f"{item.where}: the chat template leaves no token of a response to train on")
        return encoded

    def _ids(self, text: str, **options: Any) -> list[int]:
        ids: list[int] = self._tokenizer(text, verbose=False, **options).input_ids
        return ids

    def _start(self, text: str) -> list[int]:
        """A text's tokens with the special ones at its start, and none at its end."""
        ids = self._ids(text)
        return ids[:-1] if self._end and ids[-1:] == self._end else ids

    def _conversation(self, item: Conversation) -> Encoded:
        if self._template is None:
            raise TextError(
                f"{item.where}: the tokenizer has no chat template to write conversations with; "
                "use a model that was tuned for chat, or the format prompt-response without chat_template"
            )
        encoded = self._by_marks(item) if self._marks_responses else self._by_prefixes(item)
        return encoded if self._responses == "all" else Encoded(encoded.ids, _last_run(encoded.loss_mask))

    def _by_marks(self, item: Conversation) -> Encoded:
        written = self._write(item, len(item.messages), return_assistant_tokens_mask=True)
        return Encoded(list(written["input_ids"]), [bool(mask) for mask in written["assistant_masks"]])

    def _by_prefixes(self, item: Conversation) -> Encoded:
        ids = self._write(item, len(item.messages))["input_ids"]
        loss_mask = [False] * len(ids)
        # What a template writes before a first message cannot be told from the message by a prefix.
        turns = [turn for turn, message in enumerate(item.messages) if message["role"] == "assistant" and turn]
        for turn in reversed(turns):
            prefix = self._write(item, turn, add_generation_prompt=True)["input_ids"]
            whole = ids if turn == len(item.messages) - 1 else self._write(item, turn + 1)["input_ids"]
            if ids[: len(whole)] != whole or whole[: len(prefix)] != prefix:
                if turn == turns[-1]:
                    raise TextError(
                        f"{item.where}: the chat template does not write the last response after what it writes "
                        "before one is generated, so it cannot be told where it starts; use a template that marks "
                        "responses with {% generation %}"
                    )
                break
            loss_mask[len(prefix) : len(whole)] = [True] * (len(whole) - len(prefix))
        return Encoded(list(ids), loss_mask)

    def _write(self, item: Conversation, count: int, **options: Any) -> dict[str, Any]:
        """The first `count` messages by the chat template."""
        try:
            written: Any = self._tokenizer.apply_chat_template(
                list(item.messages[:count]), tokenize=True, return_dict=True, **options
            )
        except Exception as error:
            # Templates are programs that come with the tokenizer, and refuse in many ways.
            raise TextError(f"{item.where}: the chat template refuses this conversation: {one_line(error)}") from None
        return dict(written)


def _template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    try:
        return str(tokenizer.get_chat_template())
    except ValueError:
        return None


def _last_run(loss_mask: list[bool]) -> list[bool]:
    """Only the last unbroken run of true ones."""
    stop = len(loss_mask) - loss_mask[::-1].index(True) if any(loss_mask) else 0
    start = stop
    while start and loss_mask[start - 1]:
        start -= 1
    return [start <= index < stop for index in range(len(loss_mask))]
