"""The part of the vocabulary that a draft may propose: reading fewer rows of the LM head makes drafting cheaper.

Verification by the whole head keeps the result lossless; a token outside the part is merely never drafted.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class DraftVocabulary:
    """Token ids in order of falling frequency.

    Attributes:
        ids: (V',), int64, each once, end tokens among them.
    """

    ids: Tensor
