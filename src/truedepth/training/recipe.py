"""What a training was asked to do: the settings that all kinds have. Saved beside its results."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from truedepth.records.recipe import BaseRecipe, Settings
from truedepth.training.data.sources import DataSource


class Scratch(Settings):
    """A model that is not trained yet."""

    config: dict[str, Any] = Field(description="of the model: `model_type`, and what differs from that type's defaults")
    tokenizer: str | None = Field(default=None, description="a tokenizer: a model that `truedepth.load` takes")
    vocabulary: int | None = Field(
        default=None,
        ge=259,
        le=10**7,
        description="make a byte-level BPE tokenizer of this size from the training text",
    )

    @model_validator(mode="after")
    def _one_tokenizer(self) -> Self:
        if (self.tokenizer is None) == (self.vocabulary is None):
            raise ValueError("give exactly one of 'tokenizer' and 'vocabulary'")
        if "model_type" not in self.config:
            raise ValueError("'config' needs a 'model_type', such as llama")
        return self


class ModelSource(Settings):
    """The model that is trained."""

    name: str | None = Field(default=None, description="whatever `truedepth.load` takes")
    scratch: Scratch | None = Field(default=None, description="a new model instead")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="of the weights; for that of the computation see `precision`"
    )
    device: str = Field(default="auto", description="auto, cpu, cuda or mps")
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if (self.name is None) == (self.scratch is None):
            raise ValueError("give exactly one of 'name' and 'scratch'")
        return self


class Data(Settings):
    """The text, and how it becomes rows."""

    train: tuple[DataSource, ...] = Field(min_length=1)
    held_out: tuple[DataSource, ...] = Field(default=(), description="text to judge by, which is not trained on")
    length: int = Field(default=512, ge=2, le=10**7, description="tokens of a row")
    packed: bool = Field(default=True, description="fill rows with several items, which do not see each other")
    too_long: Literal["refuse", "drop"] = Field(
        default="refuse", description="what to do with conversations and responses longer than a row"
    )
    responses: Literal["all", "last"] = Field(
        default="all", description="of a conversation, which of the responses are trained on"
    )


class Logging(Settings):
    """How often what is written, in steps."""

    log_every: int = Field(default=10, ge=1)
    evaluate_every: int = Field(default=100, ge=1, description="judge held-out text; at the start and the end too")
    save_every: int = Field(default=100, ge=1, description="write a checkpoint; at the end too")
    keep_checkpoints: int = Field(default=1, ge=1)
    tensorboard: bool = True


class TrainingRecipe(BaseRecipe):
    """What all kinds of training have. A kind derives from it, and narrows `kind` to its own name."""

    described_as: ClassVar[str] = "a recipe for training"

    kind: str
    model: ModelSource
    data: Data
    steps: int | None = Field(default=None, ge=1, le=10**9, description="optimizer steps")
    epochs: float | None = Field(default=None, gt=0, le=10**6, description="passes over the rows, instead of `steps`")
    batch: int = Field(default=8, ge=1, description="rows of a step, over all micro-batches and ranks")
    micro_batch: int | None = Field(
        default=None, ge=1, description="rows that a rank takes at once; by default its whole share of the batch"
    )
    learning_rate: float = Field(default=3e-5, gt=0, description="learning rate after the warm-up")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="cosine", description="how the learning rate falls after the warm-up: not, or to 0"
    )
    warmup: int = Field(default=0, ge=0, description="steps over which the learning rate rises from 0")
    weight_decay: float = Field(default=0.0, ge=0)
    max_gradient_norm: float = Field(default=1.0, gt=0, description="larger gradients are scaled down to this norm")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="of the computation; other than float32 means mixed precision"
    )
    activation_checkpointing: bool = Field(
        default=False, description="compute layers again in the backward pass instead of keeping what they computed"
    )
    seed: int = Field(default=0, ge=0, lt=2**32)
    logging: Logging = Logging()

    @model_validator(mode="after")
    def _one_duration(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of 'steps' and 'epochs'")
        return self

    def command(self) -> str:
        return f"truedepth train {self.kind} recipe.yaml --output FOLDER"
