"""An EAGLE head: it drafts from what the target knew when it verified, instead of running layers of the target.

It follows EAGLE-3 (arXiv 2503.01840, section 3.1): hidden states of several depths are combined into one, added to the
embedding of the token chosen after them, and go through a decoder layer of the head's own. When it drafts further,
where the target has not been yet, its own last state stands in for the combined ones.

With h_d(t) the target's state at depth d of token t, e(t) its embedding, and n(x) = x / rms(x), token t of a text
enters the head's first layer as

    x(t) = s(t - 1) + E n(e(t)),    s(t) = fc [n(h_d1(t)), ..., n(h_dk(t))] where the target has been,
                                    s(t) = the head's own last state at t elsewhere.

EAGLE-3 gives the two summands to attention beside each other, which needs layers with wider projections. Summed, they
fit layers of the model's own kind, whatever the family.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from truedepth.engine.drafts.heads.fingerprint import Fingerprint
from truedepth.engine.drafts.heads.trained_head import HeadCard, TrainedHead, check_layers, draft_ids
from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary
from truedepth.errors import DraftError, UsageError
from truedepth.models.rewire import causal_lm
from truedepth.plan import DepthPlan


class EagleHeadCard(HeadCard):
    """The fields of the `head.json` of an EAGLE head."""

    kind: Literal["eagle"] = "eagle"
    depths: list[Annotated[int, Field(ge=1)]] = Field(description="numbers of layers after which it reads states")


class EagleHead(TrainedHead):
    """Decoder layers of its own, a norm and a projection, fed with the target's states.

    Make one with `fresh` or `load`.

    Attributes:
        depths: numbers of layers of the model after which it reads hidden states, rising.
    """

    card_schema = EagleHeadCard

    def __init__(self, core: PreTrainedModel, fingerprint: Fingerprint, depths: Sequence[int], **sizes: Any) -> None:
        """An EAGLE head without weights, on the meta device; see `fresh` and `load`."""
        super().__init__(core, fingerprint, **sizes)
        self.depths = tuple(depths)
        self._width = fingerprint.hidden_size
        with torch.device("meta"):
            self.fc = nn.Linear(self._width * len(self.depths), self._width, bias=False)
            self.embed = nn.Linear(self._width, self._width, bias=False)

    def combine_hidden_states(self, states: Tensor) -> Tensor:
        """s of verified tokens, from the target's states.

        Args:
            states: the target's at each of `depths`, side by side: (B, T, D * len(depths)). Zeros stand for those
                before a text's first token.

        Returns:
            (B, T, D)
        """
        parts = states.unflatten(-1, (len(self.depths), self._width))  # (B, T, k, D)
        combined: Tensor = self.fc(_normed(parts).flatten(-2))
        return combined

    def layer_inputs(self, before: Tensor, embedded: Tensor) -> Tensor:
        """x of tokens, (B, T, D), from s of those before them and their embeddings, both (B, T, D)."""
        inputs: Tensor = before + self.embed(_normed(embedded))
        return inputs

    def require_target(self, target: DepthPlan) -> None:
        """Refuse a target whose states the head does not know.

        Raises:
            DraftError: the target is not the whole model.
        """
        if not target.is_full:
            raise DraftError(
                f"the head reads hidden states of the whole model, but the plan to decode with is '{target}'; "
                "decode with the whole model, or draft with another head"
            )

    def _products(self) -> list[nn.Module]:
        return [*super()._products(), self.fc, self.embed]

    @classmethod
    def fresh(
        cls,
        model: nn.Module,
        depths: Sequence[int],
        *,
        num_layers: int = 1,
        vocabulary: DraftVocabulary | None = None,
        rank: int | None = 0,
    ) -> Self:
        """A head to be trained, which starts with the model's last layers, final norm and LM head.

        At first it reads the deepest states and the embedding as they are.

        Args:
            model: a causal language model of a supported family, bare or wrapped by PEFT; no engine is open on it.
            depths: numbers of layers after which states are read, rising, each 1 to the model's number of layers.
            num_layers: decoder layers of its own.
            vocabulary: the tokens that it can draft; None: all.
            rank: of the change to the model's own rows of the LM head; None: rows of its own instead.

        Raises:
            DraftError: the vocabulary does not fit the model.
            UsageError: depths or a number of layers that cannot be.
            UnsupportedModelError: the model's weights are packed, quantized, or have adapters on them.
        """
        core: PreTrainedModel = causal_lm(model)
        fingerprint = Fingerprint.of(core)
        _check(depths, fingerprint, num_layers)
        ids = draft_ids(core, vocabulary, fingerprint)
        made = cls(core, fingerprint, depths, num_layers=num_layers, draft_size=len(ids), rank=rank)
        same = torch.eye(fingerprint.hidden_size)
        fc = torch.cat([torch.zeros_like(same)] * (len(depths) - 1) + [same], 1)
        return made._start(core, ids, {}, fc__weight=fc, embed__weight=same)

    @classmethod
    def _of_card(cls, core: PreTrainedModel, card: EagleHeadCard, fingerprint: Fingerprint, **sizes: Any) -> Self:
        _check(card.depths, fingerprint, card.extra_layers)
        return cls(core, fingerprint, card.depths, **sizes)

    def _card(self, **common: Any) -> EagleHeadCard:
        return EagleHeadCard(depths=list(self.depths), **common)


def _normed(hidden: Tensor) -> Tensor:
    """x / rms(x) over the last dimension; zeros stay zeros."""
    return nn.functional.rms_norm(hidden, (hidden.shape[-1],), eps=1e-6)


def _check(depths: Sequence[int], fingerprint: Fingerprint, num_layers: int) -> None:
    """Refuse a head that cannot be made."""
    most = fingerprint.num_layers
    if not depths or list(depths) != sorted(set(depths)) or not 1 <= depths[0] <= depths[-1] <= most:
        raise UsageError(
            f"the depths at which the head reads states are {list(depths)}; "
            f"give at least one, rising, from 1 to {most} (the model's number of layers)"
        )
    check_layers(num_layers, 1, fingerprint)
