"""Items as tokens: which ones they are, and which of them the loss is over."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import Environment, TemplateError, meta
from transformers import PreTrainedTokenizerBase

from truedepth.errors import TextError
from truedepth.records.messages import listed, one_line
from truedepth.training.data.responses import ResponseTokens, marks_responses, with_marks, without_marks
from truedepth.training.data.sources import Conversation, Document, Exchange, Item

_LOOKS_READ = frozenset({"functions", "function_call", "tool_choice", "system", "system_prompt", "system_message"})
"""Fields of other formats that would change what a template writes, were they given in its way."""


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
    makes of it, with the tools, documents and other inputs of the item. Where the template does not mark responses
    itself, they are what each assistant message adds to the
    messages before it, the first message of all left out; a template that writes earlier messages differently once
    there are later ones leaves only the last response to be trained on.

    Args:
        responses: of conversations that are trained on: `all`, or the `last` one only.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, responses: Literal["all", "last"] = "all") -> None:
        self._tokenizer = tokenizer
        self._responses = responses
        self._end: list[int] = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self._responses_by_marks: ResponseTokens | None = None
        self._unread: set[str] = set()

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
        template = _template(self._tokenizer, item)
        self._check_fields(item, template)
        text = self._text(item, template)
        for arguments in _arguments_as_text(item):
            if any(json.dumps(arguments, ensure_ascii=ascii_only) in text for ascii_only in (True, False)):
                raise TextError(
                    f"{item.where}: the chat template puts quotes around the arguments of a tool call, since they are "
                    f"text, {arguments[:40]!r}; write them as a JSON object"
                )
        encoded = (
            self._by_marks(item, template, text) if marks_responses(template) else self._by_prefixes(item, template)
        )
        return encoded if self._responses == "all" else Encoded(encoded.ids, _last_run(encoded.loss_mask))

    def _check_fields(self, item: Conversation, template: str) -> None:
        """Refuse fields that the template reads and is not given; warn once of others that look like such."""
        if not item.unread:
            return
        read = sorted(_variables(template).intersection(item.unread))
        if read:
            raise TextError(
                f"{item.where}: the chat template reads {listed(read)}, and the item has a field of that name, which "
                "is not given to it; put it into an object 'chat_template_kwargs', or give it another name"
            )
        new = sorted(_LOOKS_READ.intersection(item.unread) - self._unread)
        if new:
            self._unread.update(new)
            warnings.warn(
                f"{item.where}: the field {listed(new)} is not read; a chat template reads 'messages', 'tools', "
                "'documents' and what is in 'chat_template_kwargs'",
                stacklevel=2,
            )

    def _by_marks(self, item: Conversation, template: str, text: str) -> Encoded:
        if self._responses_by_marks is None:
            self._responses_by_marks = ResponseTokens(self._tokenizer)
        marked = self._text(item, with_marks(template))
        if without_marks(marked) != text:
            raise TextError(
                f"{item.where}: it cannot be told where the responses are that the chat template marks; use a template "
                "without {% generation %}"
            )
        ids = self._write(item, template)
        return Encoded(ids, self._responses_by_marks.mask(marked, ids, item.where))

    def _by_prefixes(self, item: Conversation, template: str) -> Encoded:
        ids = self._write(item, template)
        loss_mask = [False] * len(ids)
        # What a template writes before a first message cannot be told from the message by a prefix.
        turns = [turn for turn, message in enumerate(item.messages) if message["role"] == "assistant" and turn]
        for turn in reversed(turns):
            prefix = self._write(item, template, turn, add_generation_prompt=True)
            whole = ids if turn == len(item.messages) - 1 else self._write(item, template, turn + 1)
            if ids[: len(whole)] != whole or whole[: len(prefix)] != prefix:
                if turn == turns[-1]:
                    raise TextError(
                        f"{item.where}: the chat template does not write the last response after what it writes "
                        "before one is generated, so it cannot be told where it starts; use a template that marks "
                        "responses with {% generation %}"
                    )
                break
            loss_mask[len(prefix) : len(whole)] = [True] * (len(whole) - len(prefix))
        return Encoded(ids, loss_mask)

    def _write(self, item: Conversation, template: str, count: int | None = None, **options: Any) -> list[int]:
        """The tokens of the first `count` messages, of all by default."""
        return list(self._apply(item, template, count, tokenize=True, return_dict=True, **options)["input_ids"])

    def _text(self, item: Conversation, template: str) -> str:
        return str(self._apply(item, template, tokenize=False))

    def _apply(self, item: Conversation, template: str, count: int | None = None, **options: Any) -> Any:
        try:
            return self._tokenizer.apply_chat_template(
                list(item.messages[:count]), chat_template=template, **item.inputs, **options
            )
        except Exception as error:
            # Templates are programs that come with the tokenizer, and refuse in many ways.
            raise TextError(f"{item.where}: the chat template refuses this conversation: {one_line(error)}") from None


def _template(tokenizer: PreTrainedTokenizerBase, item: Conversation) -> str:
    """The chat template for a conversation: of several, that for tools where it has them."""
    try:
        return str(tokenizer.get_chat_template(tools=item.inputs.get("tools")))
    except ValueError:
        templates: Any = tokenizer.chat_template
    if isinstance(templates, dict):
        raise TextError(
            f"{item.where}: the tokenizer has chat templates named {listed(sorted(templates))}, but none named "
            "default; give one of them that name in the model's folder"
        )
    raise TextError(
        f"{item.where}: the tokenizer has no chat template to write conversations with; "
        "use a model that was tuned for chat, or the format prompt-response without chat_template"
    )


def _variables(template: str) -> set[str]:
    """The names that a template reads from its inputs."""
    environment = Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        return meta.find_undeclared_variables(environment.parse(with_marks(template)))
    except TemplateError:
        return set()  # applying it says what is wrong with it


def _arguments_as_text(item: Conversation) -> Iterator[str]:
    """Arguments of tool calls that are not an object but JSON text."""
    for message in item.messages:
        for call in message.get("tool_calls") or ():
            arguments = call.get("function", call).get("arguments")
            if isinstance(arguments, str):
                yield arguments


def _last_run(loss_mask: list[bool]) -> list[bool]:
    """Only the last unbroken run of true ones."""
    stop = len(loss_mask) - loss_mask[::-1].index(True) if any(loss_mask) else 0
    start = stop
    while start and loss_mask[start - 1]:
        start -= 1
    return [start <= index < stop for index in range(len(loss_mask))]
