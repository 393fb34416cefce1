"""Items as tokens, made once and kept in a cache.

`datasets` could keep them too, but it knows a source by its settings and not by its text, so the key would still be
made here, and its lists of lists would still have to become tensors: no fewer lines.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from platformdirs import user_cache_path
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from truedepth.errors import TextError
from truedepth.records.files import prepare_output, write_atomic
from truedepth.records.progress import Progress, silent
from truedepth.training.data.encoding import Encoder
from truedepth.training.data.sources import DataSource, Document, Where, read_items

_VERSION = 3
"""Of the cached files; to be raised whenever items come to other tokens than before."""

_UNITS: tuple[Literal["", "line", "row"], ...] = ("", "line", "row")


@dataclass(frozen=True, eq=False)
class TokenizedItems:
    """The tokens of items, one item after the other.

    Attributes:
        ids: (N,) int32.
        loss_mask: (N,) bool, the tokens that the loss is over.
        stops: (items,) int64, where each item stops among the tokens.
        divisible: (items,) bool, whether it may be cut.
        origins: (items, 3) int64: which of `names`, unit and number of a `Where`.
        names: of files and datasets.
    """

    ids: Tensor
    loss_mask: Tensor
    stops: Tensor
    divisible: Tensor
    origins: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.stops)

    def where(self, item: int) -> Where:
        """Where an item came from."""
        name, unit, number = self.origins[item].tolist()
        return Where(self.names[name], _UNITS[unit], number)


def tokenize(
    sources: Sequence[DataSource],
    tokenizer: PreTrainedTokenizerBase,
    responses: Literal["all", "last"] = "all",
    cache: Path | None = None,
    progress: Progress = silent,
) -> TokenizedItems:
    """The tokens of all items of all sources, from the cache where they are there.

    Args:
        responses: see `Encoder`.
        cache: a folder; by default in the user's cache. Its files may be deleted at any time.

    Raises:
        TextError: an item that cannot be read or tokenised, or none at all.
        OutputError: the cache cannot be written.
    """
    folder = cache or user_cache_path("truedepth") / "tokens"
    key = _key(sources, tokenizer, responses)
    path = folder / f"{key}.safetensors"
    known = _read(path)
    if known is not None:
        return known
    items = _tokenized(sources, Encoder(tokenizer, responses), progress)
    if not len(items):
        raise TextError("the training text has no items; check the files, 'skip' and 'limit' of the recipe")
    prepare_output(folder, resume=True)
    tensors = {name: value for name, value in vars(items).items() if isinstance(value, Tensor)}
    write_atomic(path, save(tensors, {"names": json.dumps(items.names)}))
    return items


def _tokenized(sources: Sequence[DataSource], encoder: Encoder, progress: Progress) -> TokenizedItems:
    ids: list[Tensor] = []
    loss_mask: list[Tensor] = []
    origins: list[tuple[int, int, int]] = []
    divisible: list[bool] = []
    names: dict[str, int] = {}
    with progress("Tokenising", len(sources)) as advance:
        for source in sources:
            for item in read_items(source):
                encoded = encoder.encode(item)
                ids.append(torch.tensor(encoded.ids, dtype=torch.int32))
                loss_mask.append(torch.tensor(encoded.loss_mask, dtype=torch.bool))
                divisible.append(isinstance(item, Document))
                name = names.setdefault(item.where.name, len(names))
                origins.append((name, _UNITS.index(item.where.unit), item.where.number))
            advance()
    lengths = torch.tensor([len(item) for item in ids], dtype=torch.int64)
    return TokenizedItems(
        ids=torch.cat(ids) if ids else torch.empty(0, dtype=torch.int32),
        loss_mask=torch.cat(loss_mask) if loss_mask else torch.empty(0, dtype=torch.bool),
        stops=lengths.cumsum(0),
        divisible=torch.tensor(divisible, dtype=torch.bool),
        origins=torch.tensor(origins, dtype=torch.int64).reshape(-1, 3),
        names=tuple(names),
    )


def _read(path: Path) -> TokenizedItems | None:
    """A cached file; None where there is none, or it is not whole."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return TokenizedItems(**tensors, names=tuple(json.loads(file.metadata()["names"])))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError):
        return None


def _key(sources: Iterable[DataSource], tokenizer: PreTrainedTokenizerBase, responses: str) -> str:
    """A hash of all that the tokens depend on: every item, the tokenizer, and how items are encoded."""
    digest = hashlib.sha256()
    digest.update(json.dumps([_VERSION, responses, *_identity(tokenizer)]).encode())
    for source in sources:
        for item in read_items(source):
            digest.update(json.dumps([type(item).__name__, asdict(item)], sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _identity(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What makes a tokenizer write the tokens that it writes."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    specials = json.dumps({name: str(token) for name, token in tokenizer.special_tokens_map.items()}, sort_keys=True)
    return [type(tokenizer).__name__, str(rules), specials, str(tokenizer.chat_template)]
