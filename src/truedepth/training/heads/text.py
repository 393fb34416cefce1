"""What the states for training a head are made of: text that is read, and prompts that the model answers itself."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from truedepth.engine.generation import encode_prompt
from truedepth.errors import TextError, UsageError
from truedepth.evaluation.texts import special_start
from truedepth.records.progress import Progress, silent
from truedepth.records.recipe import Settings
from truedepth.training.data.sources import DataSource, Document, read_items
from truedepth.training.data.tokenized import tokenize


class Prompts(Settings):
    """Text that the model goes on with, greedily."""

    source: DataSource = Field(description="of format text: each item is a prompt, or text whose parts are prompts")
    chat: bool = Field(default=True, description="each item is a user's message; otherwise its parts are prompts")
    prompt_tokens: int = Field(default=48, ge=1, description="tokens of a prompt that is a part of a text")
    new_tokens: int = Field(default=192, ge=2, description="the most that the model writes after each")


class HeadText(Settings):
    """Where the states come from. A head drafts best what is like the text that it was trained on."""

    read: tuple[DataSource, ...] = Field(default=(), description="text that is read as it is")
    answer: tuple[Prompts, ...] = Field(default=(), description="prompts that the model answers")
    tokens: int = Field(ge=1, description="stop when so many tokens have been read and written")

    @property
    def sources(self) -> list[str]:
        """Files and datasets, and what is done with them."""
        read = [f"{source.file or source.dataset} (read)" for source in self.read]
        return read + [f"{prompts.source.file or prompts.source.dataset} (answered)" for prompts in self.answer]


@dataclass(frozen=True, slots=True)
class Passage:
    """One sequence to read or to write on.

    Attributes:
        ids: token ids, at least two of text that is read.
        loss_mask: which of them the head is trained to draft; all False for a prompt.
        new_tokens: the most to write after them; 0: none.
    """

    ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    new_tokens: int


def read_passages(
    text: HeadText, tokenizer: PreTrainedTokenizerBase, length: int, seed: int, progress: Progress = silent
) -> list[Passage]:
    """All passages of a text, shuffled: the first of them are as good as any.

    Args:
        length: the most tokens of a passage; longer text is cut, and of other items the end is left out.

    Raises:
        TextError: a source that cannot be read, a prompt without room for an answer, or nothing at all.
    """
    passages: list[Passage] = []
    if text.read:
        passages += _read(text.read, tokenizer, length, progress)
    for prompts in text.answer:
        passages += _prompts(prompts, tokenizer, length)
    if not passages:
        raise TextError("there is no text to make states of; give 'read' or 'answer' in the recipe")
    random.Random(seed).shuffle(passages)
    return passages


def digest_of(passages: Sequence[Passage]) -> str:
    """A hash of what will be read and written, in its order."""
    digest = hashlib.sha256()
    for passage in passages:
        digest.update(json.dumps([passage.ids, passage.loss_mask, passage.new_tokens]).encode())
    return digest.hexdigest()


def _read(
    sources: Sequence[DataSource], tokenizer: PreTrainedTokenizerBase, length: int, progress: Progress
) -> Iterator[Passage]:
    items = tokenize(sources, tokenizer, progress=progress)
    start = 0
    for stop, divisible in zip(items.stops.tolist(), items.divisible.tolist(), strict=True):
        end = stop if divisible else min(stop, start + length)
        for begin in range(start, end, length):
            here = slice(begin, min(begin + length, end))
            loss_mask: list[bool] = items.loss_mask[here].tolist()
            if any(loss_mask[1:]):
                ids: list[int] = items.ids[here].tolist()
                yield Passage(tuple(ids), tuple(loss_mask), 0)
        start = stop


def _prompts(prompts: Prompts, tokenizer: PreTrainedTokenizerBase, length: int) -> Iterator[Passage]:
    for item in read_items(prompts.source):
        if not isinstance(item, Document):
            raise TextError(f"{item.where}: prompts must be of format text, not {prompts.source.format}")
        for ids in _prompts_of(item, prompts, tokenizer):
            new = min(prompts.new_tokens, length - len(ids))
            if new >= 2:
                yield Passage(tuple(ids), (False,) * len(ids), new)
            elif prompts.chat is False:
                raise TextError(
                    f"prompts of {prompts.prompt_tokens} tokens leave no room for an answer in passages of {length}; "
                    "lower 'prompt_tokens' or raise 'length'"
                )


def _prompts_of(item: Document, prompts: Prompts, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    if prompts.chat:
        try:
            yield encode_prompt(tokenizer, item.text, raw=False)
        except UsageError as error:
            raise TextError(f"{item.where}: {error}; in a recipe, 'chat: false'") from None
        return
    ids: list[int] = tokenizer(item.text, add_special_tokens=False, verbose=False).input_ids
    start = special_start(tokenizer)
    size = prompts.prompt_tokens
    for begin in range(0, len(ids) - size + 1, size + prompts.new_tokens):
        yield start + ids[begin : begin + size]
