"""What tells one model from another, whatever file and type its weights were loaded from.

No hash of weights survives a change of type, so a fingerprint is a sample of numbers, compared within a tolerance:

- the gains of all norms, which every format keeps in at least 16 bits (GGUF files keep them in float32): they tell
  fine-tuned versions of one model apart, unless a version left its norms alone;
- some rows of the embedding, which a GGUF file may have quantised to few bits: they tell apart models whose norms are
  alike, such as untrained ones.

Both can be read while the model is packed for decoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from truedepth.families import family_of
from truedepth.models.adapters import modules_as_they_came

NORMS_DIFFER = 0.005
"""Relative distance from which on norms are another model's. Rounding to bfloat16 makes 0.001."""

EMBEDDINGS_DIFFER = 0.5
"""The same for embeddings. Four-bit quantisation makes some 0.1; embeddings of unrelated models are 1.4 apart."""

_ROWS = 32
_COLUMNS = 64


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """A model's sizes and a sample of its weights.

    Attributes:
        num_layers: decoder layers.
        hidden_size: D.
        vocabulary_size: V, columns of the logits.
        embedding: evenly spaced numbers of evenly spaced rows, (n, c), float32.
        norms: evenly spaced gains of each layer's norms and of the final one, (m,), float32.
    """

    num_layers: int
    hidden_size: int
    vocabulary_size: int
    embedding: Tensor
    norms: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: PreTrainedModel) -> Self:
        """The fingerprint of a causal language model of a supported family."""
        family = family_of(model.config)
        embed: Any = model.get_submodule(family.embedding)
        head: Any = model.get_submodule(family.head)
        layers = family.decoder_layers(model)
        ids = _evenly(embed.weight.shape[0], _ROWS).to(embed.weight.device)
        # By the module and not its table, whose memory is freed while the model is packed.
        rows = embed(ids).float().cpu()  # (n, D)
        gains = [gain for module in (*layers, model.get_submodule(family.final_norm)) for gain in _gains(module)]
        return cls(
            num_layers=len(layers),
            hidden_size=rows.shape[1],
            vocabulary_size=head.weight.shape[0],
            embedding=rows[:, _evenly(rows.shape[1], _COLUMNS)],
            norms=torch.cat([gain.float().cpu()[_evenly(len(gain), _COLUMNS)] for gain in gains]),
        )

    def difference(self, other: Fingerprint) -> str | None:
        """How the model `other` differs from this one, in words; None where both are the same."""
        sizes = (
            ("decoder layers", self.num_layers, other.num_layers),
            ("numbers in a hidden state", self.hidden_size, other.hidden_size),
            ("tokens in its vocabulary", self.vocabulary_size, other.vocabulary_size),
        )
        for what, own, others in sizes:
            if own != others:
                return f"it has {own} {what}, and this model {others}"
        if _distance(other.norms, self.norms) > NORMS_DIFFER:
            return "its norms have other weights"
        if _distance(other.embedding, self.embedding) > EMBEDDINGS_DIFFER:
            return "its embedding has other weights"
        return None


def _gains(module: nn.Module) -> list[Tensor]:
    """The vectors among the weights of a module's parts, which are those of its norms: adapters may have others."""
    weights = (getattr(part, "weight", None) for part in modules_as_they_came(module))
    return [weight for weight in weights if isinstance(weight, Tensor) and weight.dim() == 1]


def _evenly(size: int, count: int) -> Tensor:
    """Up to `count` evenly spaced indices below `size`, the first and the last among them: int64."""
    return torch.linspace(0, size - 1, min(size, count), dtype=torch.float64).round().long()


def _distance(one: Tensor, other: Tensor) -> float:
    """|one - other| / |other|; infinite where they cannot be compared."""
    if one.shape != other.shape:
        return float("inf")
    distance = (one - other).double().norm() / other.double().norm().clamp_min(1e-12)
    return float(distance.nan_to_num(nan=torch.inf))
