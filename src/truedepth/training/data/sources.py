"""The text that a training reads, item by item: text files, JSON lines, and Hugging Face datasets.

Every item knows where it came from, so that what is wrong with one is said by file and line. JSON lines are therefore
read here and not by `datasets`, which knows no lines, and fills up fields that are missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from transformers import PreTrainedTokenizerBase

from truedepth.errors import TextError
from truedepth.records.messages import one_line
from truedepth.records.recipe import Settings
from truedepth.records.text_files import decode_text, read_text, refuse_lone_surrogates
from truedepth.training.data.hub_data import load_split

TEMPLATE_FIELD = "chat_template_kwargs"
"""The field of a conversation with what its chat template reads by name, besides tools and documents."""

_OWN_ARGUMENTS = {"messages", *signature(PreTrainedTokenizerBase.apply_chat_template).parameters} - {"kwargs"}
"""What such a field may not have, since it says how a template is applied."""

JSON_LINES = (".jsonl", ".ndjson")
"""How the names of files end that hold one JSON object a line."""


class DataSource(Settings):
    """Where items come from, and what they are."""

    file: str | None = Field(
        default=None, description="a text file, a .jsonl file, or a pattern such as code/**/*.py for many of them"
    )
    dataset: str | None = Field(default=None, description="a Hugging Face dataset: its name, or a folder")
    subset: str | None = Field(default=None, description="the configuration of a dataset that has several")
    split: str = Field(default="train", description="the split of a dataset")
    format: Literal["text", "chat", "prompt-response"] = "text"
    text_field: str = Field(default="text", description="the text of an item of format text")
    messages_field: str = Field(default="messages", description="the messages of an item of format chat")
    prompt_field: str = Field(default="prompt", description="the prompt of an item of format prompt-response")
    response_field: str = Field(default="response", description="the response of an item of format prompt-response")
    chat_template: bool = Field(
        default=False, description="put prompt and response into the tokenizer's chat template, as a user's and its own"
    )
    skip: int = Field(default=0, ge=0, description="leave out this many items at the start")
    limit: int | None = Field(default=None, ge=1, description="read at most this many items")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.file is None) == (self.dataset is None):
            raise ValueError("give exactly one of 'file' and 'dataset'")
        if self.subset is not None and self.dataset is None:
            raise ValueError("'subset' goes with 'dataset' only")
        if self.chat_template and self.format != "prompt-response":
            raise ValueError("'chat_template' goes with the format prompt-response only; a chat always has one")
        return self


@dataclass(frozen=True, slots=True)
class Where:
    """Where an item came from.

    Attributes:
        name: the file, or the dataset and its split.
        unit: what is counted in it: `line` (from 1) or `row` (from 0); empty where the item is all of it.
    """

    name: str
    unit: Literal["", "line", "row"] = ""
    number: int = 0

    def __str__(self) -> str:
        return f"{self.name}, {self.unit} {self.number}" if self.unit else self.name


@dataclass(frozen=True, slots=True)
class Document:
    """Text, every token of which is trained on. It may be cut."""

    where: Where
    text: str

    def __post_init__(self) -> None:
        refuse_lone_surrogates(self.text, str(self.where), TextError)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A prompt, and the response that is trained on. Never cut."""

    where: Where
    prompt: str
    response: str

    def __post_init__(self) -> None:
        refuse_lone_surrogates([self.prompt, self.response], str(self.where), TextError)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages with a `role` and a `content` each, of which the assistant's are trained on. Never cut.

    Attributes:
        inputs: what the chat template is given besides: `tools`, `documents`, and whatever it reads by name.
        unread: the item's other fields.
    """

    where: Where
    messages: tuple[dict[str, Any], ...]
    inputs: dict[str, Any] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        refuse_lone_surrogates([self.messages, self.inputs], str(self.where), TextError)


Item = Document | Exchange | Conversation


def read_items(source: DataSource) -> Iterator[Item]:
    """The items of a source, in its order.

    Raises:
        TextError: a file or dataset that cannot be read, JSON that is malformed, a field that is missing or of the
            wrong kind, an empty text, prompt or response; with file and line.
    """
    stop = None if source.limit is None else source.skip + source.limit
    for where, fields in islice(_records(source), source.skip, stop):
        yield _item(source, where, fields)


def _records(source: DataSource) -> Iterator[tuple[Where, Mapping[str, Any]]]:
    if source.dataset is not None:
        name = f"dataset {source.dataset}, split {source.split}"
        for number, row in enumerate(load_split(source.dataset, source.subset, source.split)):
            yield Where(name, "row", number), {key: _without_none(value) for key, value in row.items()}
        return
    for path in _files(str(source.file)):
        if path.suffix.lower() in JSON_LINES:
            yield from _json_lines(path)
        elif source.format != "text":
            raise TextError(
                f"'{path}' is no JSON lines file, which the format {source.format} needs; "
                f"give a file whose name ends in {' or '.join(JSON_LINES)}"
            )
        else:
            yield Where(str(path)), {source.text_field: read_text(path, "a readable text file", TextError)}


def _files(pattern: str) -> list[Path]:
    """One file, or all that a pattern fits, in the order of their names."""
    path = Path(pattern).expanduser()
    wild = next((index for index, part in enumerate(path.parts) if any(sign in part for sign in "*?[")), None)
    if wild is None or path.exists():
        return [path]
    folder = Path(*path.parts[:wild])
    found = sorted(file for file in folder.glob(str(Path(*path.parts[wild:]))) if file.is_file())
    if not found:
        raise TextError(f"no file fits the pattern '{pattern}'; give a file, or a pattern such as 'code/**/*.py'")
    return found


def _json_lines(path: Path) -> Iterator[tuple[Where, Mapping[str, Any]]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    where = Where(str(path), "line", number)
                    yield where, _parse(where, line)
    except OSError as error:
        raise TextError(f"cannot read {path}: {error.strerror}; give a readable file") from None


def _parse(where: Where, line: bytes) -> Mapping[str, Any]:
    try:
        fields = json.loads(decode_text(line, str(where), TextError))
    except ValueError as error:
        raise TextError(f"{where} is not JSON: {one_line(error)}; correct the line or delete it") from None
    except RecursionError:
        raise TextError(f"{where} is not JSON that can be read: its values lie too deep; delete the line") from None
    if not isinstance(fields, dict):
        raise TextError(f"{where} is no JSON object but {json.dumps(fields)[:40]}; write {{...}} with named fields")
    return fields


def _item(source: DataSource, where: Where, fields: Mapping[str, Any]) -> Item:
    if source.format == "text":
        return Document(where, _text(where, fields, source.text_field))
    if source.format == "chat":
        return _conversation(where, fields, [source.messages_field], _messages(where, fields, source.messages_field))
    prompt = _text(where, fields, source.prompt_field)
    response = _text(where, fields, source.response_field)
    if source.chat_template:
        turns = ({"role": "user", "content": prompt}, {"role": "assistant", "content": response})
        return _conversation(where, fields, [source.prompt_field, source.response_field], turns)
    return Exchange(where, prompt, response)


def _conversation(
    where: Where, fields: Mapping[str, Any], read: Sequence[str], messages: tuple[dict[str, Any], ...]
) -> Conversation:
    """Messages, and what else of an item's fields the chat template is given: as TRL's data sets have it."""
    inputs: dict[str, Any] = {}
    for name in ("tools", "documents"):
        value = _parsed(where, fields, name)
        if value is None:
            continue
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise TextError(f"{where}: the field '{name}' is {_shown(value)}; it must be a list of objects")
        inputs[name] = value
    others = _parsed(where, fields, TEMPLATE_FIELD) or {}
    if not isinstance(others, dict) or _OWN_ARGUMENTS.intersection(others):
        raise TextError(
            f"{where}: the field '{TEMPLATE_FIELD}' is {_shown(others)}; it must be an object with what the template "
            f"reads by name, without {', '.join(sorted(_OWN_ARGUMENTS))}"
        )
    known = {*read, "tools", "documents", TEMPLATE_FIELD, "messages"}
    unread = tuple(name for name, value in fields.items() if name not in known and value is not None)
    return Conversation(where, messages, {**inputs, **others}, unread)


def _parsed(where: Where, fields: Mapping[str, Any], name: str) -> Any:
    """A field that may be JSON text, as some data sets have it."""
    value = fields.get(name)
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise TextError(f"{where}: the field '{name}' is no JSON: {one_line(error)}; correct it") from None


def _without_none(value: Any) -> Any:
    """A row without the empty fields by which `datasets` makes all objects of a column alike."""
    if isinstance(value, dict):
        return {name: _without_none(each) for name, each in value.items() if each is not None}
    return [_without_none(each) for each in value] if isinstance(value, list) else value


def _field(where: Where, fields: Mapping[str, Any], name: str) -> Any:
    if name not in fields:
        known = ", ".join(map(repr, fields)) or "none"
        raise TextError(
            f"{where} has no field '{name}'; its fields are {known}. Correct it, or name the right field in the recipe"
        )
    return fields[name]


def _text(where: Where, fields: Mapping[str, Any], name: str) -> str:
    value = _field(where, fields, name)
    if not isinstance(value, str):
        raise TextError(f"{where}: the field '{name}' is {_shown(value)}; it must be text")
    if not value.strip():
        raise TextError(f"{where}: the field '{name}' is empty; fill it or delete the item")
    return value


def _messages(where: Where, fields: Mapping[str, Any], name: str) -> tuple[dict[str, Any], ...]:
    messages = _field(where, fields, name)
    if not isinstance(messages, list) or not messages:
        raise TextError(f"{where}: the field '{name}' is {_shown(messages)}; it must be a list of messages")
    for index, message in enumerate(messages):
        _check_message(where, f"message {index + 1} of '{name}'", message)
    if not any(message["role"] == "assistant" for message in messages):
        raise TextError(f"{where}: no message of '{name}' has the role assistant, so there is nothing to train on")
    return tuple(dict(message) for message in messages)


def _check_message(where: Where, which: str, message: Any) -> None:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise TextError(f"{where}: {which} is {_shown(message)}; it needs a 'role' and a 'content'")
    content = message.get("content")
    if message["role"] == "assistant" and message.get("tool_calls"):
        return
    if not isinstance(content, str):
        raise TextError(f"{where}: the content of {which} is {_shown(content)}; it must be text")
    if message["role"] == "assistant" and not content.strip():
        raise TextError(f"{where}: {which} is an empty response; fill it or delete the item")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
