"""`truedepth train layerskip`: a model is trained so that its early exits can draft."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from truedepth.families import family_of
from truedepth.training.adapters import Lora, add_lora, merged
from truedepth.training.layerskip.trainer import LayerSkipSettings, LayerSkipTrainer
from truedepth.training.recipe import TrainingRecipe
from truedepth.training.results import ProductRecord
from truedepth.training.run import MODEL_FOLDER, Kind, Training, save_model
from truedepth.training.trainer.depth_trainer import DepthTrainer


class LayerSkipRecipe(TrainingRecipe):
    """The recipe of `truedepth train layerskip`."""

    kind: Literal["layerskip"] = "layerskip"
    layerskip: LayerSkipSettings = LayerSkipSettings()
    lora: Lora | None = Field(default=None, description="train adapters on all layers instead of the weights")


class _LayerSkip:
    """The kind of training."""

    recipe = LayerSkipRecipe

    def trainer(self, training: Training[LayerSkipRecipe]) -> DepthTrainer:
        recipe, model = training.recipe, training.loaded.model
        wrapped: Any = model
        if recipe.lora is not None:
            layers = range(len(family_of(model.config).decoder_layers(model)))
            wrapped = add_lora(model, recipe.lora, layers, recipe.seed)
        return LayerSkipTrainer(wrapped, **training.options, settings=recipe.layerskip)

    def product(self, training: Training[LayerSkipRecipe], trainer: DepthTrainer) -> ProductRecord:
        assert isinstance(trainer, LayerSkipTrainer)
        save_model(training, trainer, merged(trainer.model) if training.recipe.lora else None)
        folder = training.folder / MODEL_FOLDER
        first = trainer.watched[0] if trainer.watched else 1
        commands = [
            ("find the fastest lossless draft", f"truedepth optimize {folder} --lossless -o draft"),
            ("write with it", f"truedepth generate {folder} --draft exit:{first} --prompt 'PROMPT' --stats"),
        ]
        return ProductRecord(
            description="the trained model, whose exits can draft", path=MODEL_FOLDER, figures={}, commands=commands
        )


KIND: Kind[LayerSkipRecipe] = _LayerSkip()
