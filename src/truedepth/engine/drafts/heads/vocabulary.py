"""The part of the vocabulary that a draft may propose: reading fewer rows of the LM head makes drafting cheaper.

Verification by the whole head keeps the result lossless; a token outside the part is merely never drafted. Ranking the
vocabulary by frequency for this is FR-Spec's idea (arXiv 2502.14856).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from truedepth.engine.drafts.heads.draft_files import Card, read_draft_files, write_draft_files
from truedepth.errors import DraftError, TextError, UsageError
from truedepth.families import family_of
from truedepth.models.rewire import causal_lm
from truedepth.records.messages import listed

VOCABULARY_FILES = "draft_vocabulary"
"""The name of both files, without their endings."""

_PIECE = 1 << 20
"""Characters that are tokenised at once."""


class VocabularyCard(Card):
    """The fields of `draft_vocabulary.json`."""

    size: int = Field(ge=1, description="tokens of the part")
    tokens_sha256: str = Field(description="of the tokens that the ids stand for, by which a tokenizer is known")
    source: str = Field(description="the text that was counted")
    coverage: float | None = Field(ge=0, le=1, description="share of that text's tokens that are in the part")


@dataclass(frozen=True, eq=False)
class DraftVocabulary:
    """Token ids in order of falling frequency.

    Attributes:
        ids: (V',), int64, each once, end tokens among them.
        source: the text that was counted, in words.
        coverage: share of that text's tokens that are in the part; None where nothing was counted.

    Raises:
        DraftError: ids of another shape or type, none, one below 0, or one twice.
    """

    ids: Tensor
    source: str = ""
    coverage: float | None = None

    def __post_init__(self) -> None:
        if self.ids.dim() != 1 or self.ids.dtype != torch.int64 or len(self.ids) == 0:
            kind = str(self.ids.dtype).removeprefix("torch.")
            raise DraftError(
                f"the ids of a draft vocabulary are {kind} of shape {tuple(self.ids.shape)}; "
                "give one row of int64 with at least one id"
            )
        if int(self.ids.min()) < 0:
            raise DraftError(f"the draft vocabulary has the id {int(self.ids.min())}; ids start at 0")
        found, counts = self.ids.unique(return_counts=True)
        if len(found) < len(self.ids):
            twice = [str(token) for token in found[counts > 1].tolist()]
            raise DraftError(f"the draft vocabulary has ids more than once: {listed(twice)}; give each id once")

    def require(self, vocabulary_size: int, end_ids: Collection[int]) -> None:
        """Refuse what does not fit a model.

        Args:
            vocabulary_size: V, columns of the model's logits.
            end_ids: see `end_ids_of`.

        Raises:
            DraftError: an id beyond the vocabulary, or an end token that is missing.
        """
        if (highest := int(self.ids.max())) >= vocabulary_size:
            raise DraftError(
                f"the draft vocabulary has the id {highest}, but the model's vocabulary has {vocabulary_size} tokens; "
                "use one that was made for this model"
            )
        if missing := sorted(set(end_ids) - set(self.ids.tolist())):
            raise DraftError(
                f"the draft vocabulary lacks the model's end of text (token {', '.join(map(str, missing))}), so the "
                "end of a text could never be drafted; add it, or make one with 'truedepth vocabulary'"
            )

    def save(self, folder: str | Path, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write `draft_vocabulary.safetensors` and `draft_vocabulary.json`, as `load` reads them.

        Args:
            folder: the checkpoint's, or another.

        Raises:
            DraftError: the part does not fit the model.
            OutputError: the files cannot be written.
        """
        vocabulary_size = vocabulary_size_of(model)
        self.require(vocabulary_size, end_ids_of(model))
        card = VocabularyCard(
            vocabulary_size=vocabulary_size,
            size=len(self.ids),
            tokens_sha256=_tokens_sha256(tokenizer, self.ids),
            source=self.source,
            coverage=self.coverage,
        )
        write_draft_files(Path(folder), VOCABULARY_FILES, card, {"ids": self.ids})

    @classmethod
    def load(cls, folder: str | Path, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Read what `save` wrote.

        Raises:
            DraftError: a file is missing, truncated or malformed, or it is for another model or tokenizer.
        """
        folder = Path(folder)
        card, tensors = read_draft_files(folder, VOCABULARY_FILES, VocabularyCard)
        path, size = folder / f"{VOCABULARY_FILES}.safetensors", vocabulary_size_of(model)
        if set(tensors) != {"ids"}:
            raise DraftError(f"{path} holds {listed(sorted(tensors)) or 'nothing'} instead of 'ids'; make it again")
        ids = tensors["ids"]
        if card.vocabulary_size != size:
            raise DraftError(
                f"{path} is for a vocabulary of {card.vocabulary_size} tokens, but the model's has {size}; "
                "use the model that it was made for, or make one with 'truedepth vocabulary'"
            )
        try:
            found = cls(ids, card.source, card.coverage)
            found.require(size, end_ids_of(model))
        except DraftError as error:
            raise DraftError(f"{path}: {error}") from None
        if len(ids) != card.size or _tokens_sha256(tokenizer, ids) != card.tokens_sha256:
            raise DraftError(
                f"the ids in {path} do not stand for the tokens that were counted: it is for another tokenizer, or "
                "not of one piece with its card; make one with 'truedepth vocabulary'"
            )
        return found


def build_vocabulary(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    size: int,
    *,
    vocabulary_size: int,
    end_ids: Collection[int],
    source: str = "",
) -> DraftVocabulary:
    """The most frequent tokens of some text, ties by id, special tokens always among them.

    Where the text has fewer tokens than asked for, those of the lowest ids are taken too: tokenizers number their
    tokens roughly by frequency.

    Args:
        size: V', tokens of the part.
        vocabulary_size: V, columns of the model's logits.
        end_ids: see `end_ids_of`.
        source: where the text came from, in words.

    Raises:
        UsageError: a size that is not between the number of special tokens and V.
        TextError: the text has no tokens.
    """
    special = {token for token in (*end_ids, *tokenizer.all_special_ids) if 0 <= token < vocabulary_size}
    check_size(size, special, vocabulary_size)
    counts = torch.zeros(vocabulary_size, dtype=torch.int64)
    for text in texts:
        for start in range(0, len(text), _PIECE):
            piece = text[start : start + _PIECE]
            ids: list[int] = tokenizer(piece, add_special_tokens=False, verbose=False).input_ids
            found = torch.bincount(torch.tensor(ids, dtype=torch.int64), minlength=vocabulary_size)
            counts += found[:vocabulary_size]  # a tokenizer may know tokens that the model does not
    return most_frequent(counts, size, special, source)


def check_size(size: int, special: Collection[int], vocabulary_size: int) -> None:
    """Refuse a size that a draft vocabulary cannot have.

    Raises:
        UsageError: it is not between the number of special tokens and V.
    """
    if not max(1, len(special)) <= size <= vocabulary_size:
        raise UsageError(
            f"the size of the draft vocabulary is {size}; it must be at least {max(1, len(special))} (the special "
            f"tokens) and at most {vocabulary_size} (the model's vocabulary)"
        )


def most_frequent(counts: Tensor, size: int, special: Collection[int], source: str = "") -> DraftVocabulary:
    """The most frequent tokens by their counts, (V,), int64; see `build_vocabulary`.

    Args:
        special: tokens that are always among them.

    Raises:
        TextError: nothing was counted.
    """
    total = int(counts.sum())
    if total == 0:
        raise TextError(f"{source or 'the text'} has no tokens to count; give some text")
    rank = counts.clone()
    rank[sorted(special)] += total  # ahead of all others
    taken = rank.argsort(descending=True, stable=True)[:size].sort().values
    ids_by_count = taken[counts[taken].argsort(descending=True, stable=True)]
    return DraftVocabulary(ids_by_count, source, int(counts[taken].sum()) / total)


def end_ids_of(model: nn.Module) -> frozenset[int]:
    """The tokens that end a text, by the model's generation configuration."""
    end: int | list[int] | None = getattr(causal_lm(model).generation_config, "eos_token_id", None)
    return frozenset() if end is None else frozenset(end if isinstance(end, list) else [end])


def vocabulary_size_of(model: nn.Module) -> int:
    """V: columns of the model's logits."""
    core = causal_lm(model)
    head: Any = core.get_submodule(family_of(core.config).head)
    return int(head.weight.shape[0])


def _tokens_sha256(tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> str:
    """A hash of the tokens that ids stand for, which is all that a part needs a tokenizer to have alike."""
    tokens = tokenizer.convert_ids_to_tokens(ids.tolist())
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()
