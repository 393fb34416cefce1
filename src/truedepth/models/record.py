"""What a model is, as results files have it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from truedepth.families import family_of
from truedepth.records.schema import Record

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ModelRecord(Record):
    name: str = Field(description="what the user called it: a hub id, a folder, a GGUF file or an embedded model")
    family: str
    num_layers: int
    parameters: int
    dtype: str
    device: str

    @classmethod
    def of(cls, model: PreTrainedModel, name: str) -> ModelRecord:
        family = family_of(model.config)
        return cls(
            name=name,
            family=family.name,
            num_layers=len(family.decoder_layers(model)),
            parameters=model.num_parameters(),
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(model.device),
        )
