"""`truedepth train recover`: a model is trained until it works well under a plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from truedepth.errors import PlanError, UsageError
from truedepth.families import family_of
from truedepth.methods.plan_text import PLAN_FORMATS, read_plan
from truedepth.plan import DepthPlan, Form, Prefill
from truedepth.plan.plan_file import PLAN_FILE, save_plan
from truedepth.records.recipe import Settings
from truedepth.training.adapters import Lora, add_lora, merged
from truedepth.training.recipe import TrainingRecipe
from truedepth.training.recovery.changes import bake_merges, changed_layers
from truedepth.training.recovery.objective import Objective
from truedepth.training.recovery.trainer import RecoveryTrainer
from truedepth.training.results import ProductRecord
from truedepth.training.run import MODEL_FOLDER, Kind, Training, save_model
from truedepth.training.trainer.depth_trainer import DepthTrainer


class Recover(Settings):
    """What is trained, under which plan, and on what."""

    plans: tuple[str, ...] = Field(
        min_length=1,
        description=f"the plan: {PLAN_FORMATS}; with several, each step trains one of them, drawn by chance",
    )
    form: Form | None = Field(default=None, description="how groups run, if not as the plan says")
    prefill: Prefill | None = Field(
        default=None, description="whether prompts run the plan or every layer, if not as the plan says"
    )
    layers: str = Field(
        default="changed",
        description="what is trained: 'changed', the layers that run otherwise than before; 'all', the whole model "
        "with embedding and head; or layers such as '12-27 29'",
    )
    lora: Lora | None = Field(default=None, description="train adapters on these layers instead of their weights")
    objective: Objective = Objective()
    prompt_tokens: int = Field(
        default=0,
        ge=0,
        description="with prefill 'full': of rows whose prompt is shorter (documents have none), this many tokens are "
        "read by every layer, and not trained on",
    )


class RecoverRecipe(TrainingRecipe):
    """The recipe of `truedepth train recover`."""

    kind: Literal["recover"] = "recover"
    recover: Recover


def prepare_recovery(
    model: Any, settings: Recover, seed: int = 0
) -> tuple[nn.Module, tuple[DepthPlan, ...], dict[str, Tensor]]:
    """Make a model ready to be trained under plans: bake merges, freeze what is not trained, put adapters on.

    Args:
        model: a causal language model without a plan.
        seed: for the adapters.

    Returns:
        The model, wrapped by PEFT where there are adapters; the plans; and the weights that merges replaced, by name.

    Raises:
        PlanError, MethodError: a plan cannot be read, or does not fit the model.
        UnsupportedModelError: the family cannot run a plan.
        UsageError: nothing would be trained; merges in one of several plans.
    """
    num_layers = len(family_of(model.config).decoder_layers(model))
    read = [read_plan(text, num_layers, settings.form, settings.prefill) for text in settings.plans]
    layers = _trained_layers(settings.layers, read, num_layers)
    if len(read) > 1 and any(stage.merged for plan in read for stage in plan.stages):
        raise UsageError("a plan with merged layers replaces their weights, so it must be the only one")
    plan, originals = bake_merges(model, read[0])
    plans = (plan, *read[1:])
    if settings.lora is not None:
        return add_lora(model, settings.lora, layers, seed), plans, originals
    if settings.layers != "all":
        model.requires_grad_(False)
        modules = family_of(model.config).decoder_layers(model)
        for layer in layers:
            modules[layer].requires_grad_(True)
    return model, plans, originals


def _trained_layers(text: str, plans: Sequence[DepthPlan], num_layers: int) -> tuple[int, ...]:
    if text == "all":
        return tuple(range(num_layers))
    if text == "changed":
        layers = tuple(sorted({layer for plan in plans for layer in changed_layers(plan)}))
        if not layers:
            raise UsageError("the plan changes no layer, so nothing would be trained; name the layers, such as '12-27'")
        return layers
    try:
        return DepthPlan.parse(text, num_layers).layers_used
    except PlanError as error:
        raise UsageError(
            f"'layers' is '{text}': {error}. Give 'changed', 'all', or layers such as '12-27 29'"
        ) from None


class _Recover:
    """The kind of training."""

    recipe = RecoverRecipe

    def trainer(self, training: Training[RecoverRecipe]) -> DepthTrainer:
        settings = training.recipe.recover
        model, plans, originals = prepare_recovery(training.loaded.model, settings, training.recipe.seed)
        return RecoveryTrainer(
            model,
            **training.options,
            plans=plans,
            objective=settings.objective,
            originals=originals,
            prompt_tokens=settings.prompt_tokens,
        )

    def product(self, training: Training[RecoverRecipe], trainer: DepthTrainer) -> ProductRecord:
        assert isinstance(trainer, RecoveryTrainer)
        save_model(training, trainer, merged(trainer.model) if training.recipe.recover.lora else None)
        names = [PLAN_FILE, *(f"plan-{number}.yaml" for number in range(2, len(trainer.plans) + 1))]
        if training.is_first:
            for name, plan in zip(names, trainer.plans, strict=True):
                save_plan(plan, training.folder / name, comment="What the model beside this file was trained for.")
        commands = [
            (
                f"judge it under '{plan}'",
                f"truedepth measure {training.folder / MODEL_FOLDER} --plan {training.folder / name} --quality",
            )
            for name, plan in zip(names, trainer.plans, strict=True)
        ]
        return ProductRecord(
            description="the trained model, to be run under the plan beside it",
            path=MODEL_FOLDER,
            figures={},
            commands=commands,
        )


KIND: Kind[RecoverRecipe] = _Recover()
