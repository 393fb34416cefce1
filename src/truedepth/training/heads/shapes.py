"""The shapes that a head may have, as a recipe says them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from truedepth.engine.drafts.heads.eagle_head import EagleHead
from truedepth.engine.drafts.heads.exit_head import ExitHead
from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary
from truedepth.models.loading.load import LoadedModel
from truedepth.plan import DepthPlan
from truedepth.records.recipe import Settings


class _Shape(Settings):
    layers: int = Field(default=1, ge=0, description="decoder layers of its own")
    vocabulary: int = Field(default=8192, ge=1, description="tokens that it can draft: the model's most frequent ones")
    rank: int | None = Field(
        default=0,
        ge=0,
        description="of a change to the model's own rows of the LM head, with which it projects; 0: the rows as they "
        "are; null: rows of its own",
    )


class EagleShape(_Shape):
    """A head that reads the target's states of the tokens verified."""

    kind: Literal["eagle"]
    depths: tuple[int, ...] | None = Field(
        default=None, description="numbers of layers after which it reads states; by default a third, two thirds, all"
    )

    def fresh(self, loaded: LoadedModel, vocabulary: DraftVocabulary) -> EagleHead:
        return EagleHead.fresh(
            loaded.model, self.read_at(loaded), num_layers=self.layers, vocabulary=vocabulary, rank=self.rank
        )

    def read_at(self, loaded: LoadedModel) -> tuple[int, ...]:
        """The depths of the states that it needs."""
        count = loaded.num_layers
        return self.depths or tuple(sorted({max(1, count // 3), max(1, 2 * count // 3), count}))


class ExitShape(_Shape):
    """A head after the first layers of the model."""

    kind: Literal["exit"]
    exit: int = Field(ge=1, description="layers before it")
    input_norm: bool = Field(default=True, description="put a norm before its layers")

    def fresh(self, loaded: LoadedModel, vocabulary: DraftVocabulary) -> ExitHead:
        return ExitHead.fresh(
            loaded.model,
            DepthPlan.of_layers(range(self.exit), loaded.num_layers),
            num_layers=self.layers,
            vocabulary=vocabulary,
            rank=self.rank,
            input_norm=self.input_norm and self.layers > 0,
        )

    def read_at(self, loaded: LoadedModel) -> tuple[int, ...]:
        """The depth of the states that it needs."""
        return (self.exit,)
