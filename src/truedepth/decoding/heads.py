"""What turns a draft's last hidden states into logits: the model's own norm and head, or a trained exit head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from truedepth.decoding.packing import pack_linear
from truedepth.decoding.trunk import Trunk
from truedepth.decoding.vocabulary import DraftVocabulary


class DraftHead(Protocol):
    """Makes a draft's logits.

    Attributes:
        vocabulary: the token id of each column of the logits, (V',), int64; None: column i is token i.
        layers: decoder layers that run before `logits`, on cache entries of the draft's own.
    """

    @property
    def vocabulary(self) -> Tensor | None: ...

    @property
    def layers(self) -> Sequence[nn.Module]: ...

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, T, D) to (B, T, V')."""
        ...


class OwnHead:
    """The model's own norm and LM head, or a part of its rows."""

    layers: Sequence[nn.Module] = ()

    def __init__(self, trunk: Trunk, vocabulary: DraftVocabulary | None) -> None:
        self._trunk = trunk
        self.vocabulary = None if vocabulary is None else vocabulary.ids.to(trunk.device)
        self._rows = None if self.vocabulary is None else pack_linear(trunk.head_rows(self.vocabulary))

    def logits(self, hidden: Tensor) -> Tensor:
        if self._rows is None:
            return self._trunk.logits(hidden)
        return self._trunk.logits_of(self._rows, hidden)
