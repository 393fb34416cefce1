"""Run a depth plan on a live `transformers` model, and put the model back.

The model's own forward stays in charge: it builds masks, rotary embeddings and caches, and calls its decoder
layers one after the other. `apply` gives each decoder layer a *slot*: a subclass of the layer's own class whose
call runs the stages that the plan puts at this point of the loop (none, the layer itself, a group, ...). No module
moves and no parameter is renamed, so state dicts, PEFT adapters, `Trainer` and `generate` see the model they know.

Two facts shape the details:

- A layer is handed the mask and rotary embedding of *its* attention type. A stage therefore runs in the slot of
  its last layer, and a layer of another type borrows what its own slot was handed earlier in the same forward.
- `transformers` asks the first layer (and the first layer of each attention type) of a cache how long it is. Where
  the plan skips such a layer, its cache entry is kept at the true length by zeros that nobody reads.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from truedepth.errors import PlanError, UnsupportedModelError
from truedepth.families import Family, family_of
from truedepth.models.stages import LayerInputs, run_group
from truedepth.plan import DepthPlan, Stage

ModelT = TypeVar("ModelT", bound=nn.Module)

_BY_ATTENTION_TYPE = ("attention_mask", "position_embeddings")
"""Those inputs of a decoder layer that depend on its attention type (full, sliding)."""


@dataclass
class _Applied:
    """What the slots of one model share."""

    plan: DepthPlan
    family: Family
    layers: list[nn.Module]
    types: list[str]
    free_skipped_cache: bool
    lent: dict[str, dict[str, Any]] = field(default_factory=dict)
    replaced_weights: list[tuple[nn.Parameter, Tensor]] = field(default_factory=list)


@dataclass
class _Slot:
    """One decoder layer's place in the model's loop."""

    index: int
    stages: tuple[Stage, ...]
    skipped: bool
    measures_cache: bool
    lends: bool
    applied: _Applied


class _SlottedLayer(nn.Module):
    """Mixed in front of a decoder layer's class by `apply`."""

    _truedepth_slot: _Slot

    def __call__(self, hidden_states: Tensor, *args: Any, **inputs: Any) -> Any:
        slot = self._truedepth_slot
        applied = slot.applied
        if applied.plan.prefill == "full" and not _decoding(
            slot, hidden_states, inputs.get("past_key_values")
        ):
            return super().__call__(hidden_states, *args, **inputs)
        if slot.lends:
            kind = applied.types[slot.index]
            applied.lent[kind] = {name: inputs[name] for name in _BY_ATTENTION_TYPE if name in inputs}
        if slot.skipped:
            _keep_cache_true(slot, inputs.get("past_key_values"), hidden_states)
        for stage in slot.stages:
            hidden_states = _run(slot, stage, hidden_states, inputs)  # (B, T, D)
        return hidden_states

    def forward(self, hidden_states: Tensor, *args: Any, **inputs: Any) -> Any:
        stage: Stage | None = inputs.pop("truedepth_group", None)
        if stage is None:
            return super().forward(hidden_states, *args, **inputs)
        slot = self._truedepth_slot
        applied = slot.applied
        return run_group(
            [applied.layers[index] for index in stage.layers],
            [_inputs_of(slot, index, inputs) for index in stage.layers],
            applied.family,
            applied.plan.form,
            hidden_states,
        )


def apply(model: ModelT, plan: DepthPlan, *, free_skipped_cache: bool = False) -> ModelT:
    """Make a causal language model run a plan, in place. Applying again replaces the plan.

    Args:
        model: a `transformers` causal language model of a supported family, bare or wrapped by PEFT.
        plan: a plan for the model's number of layers. With `prefill="full"`, a forward over more than one token
            a sequence on a cache that has not decoded yet runs every layer, and so does a forward without a cache;
            from the first single-token step on, that cache's sequence runs the plan.
        free_skipped_cache: with `prefill="full"`, drop the skipped layers' entries of a dynamic cache at the first
            decode step. The cache can then not be cropped back and continued by the full model.

    Returns:
        The same model.

    Raises:
        UnsupportedModelError: the family is unknown, or it cannot run what the plan asks for.
        PlanError: the plan is for another number of layers.
    """
    restore(model)
    core = _causal_lm(model)
    family = family_of(core.config)
    layers = family.decoder_layers(core)
    _check(plan, family, layers)
    applied = _Applied(plan, family, layers, _attention_types(core, len(layers)), free_skipped_cache)
    slots = _slots(applied)
    _merge_weights(applied)
    for layer, slot in zip(layers, slots, strict=True):
        layer.__class__ = _slotted(type(layer))  # type: ignore[arg-type]  # mypy: a Module class is hashable
        vars(layer)["_truedepth_slot"] = slot
    return model


def restore(model: ModelT) -> ModelT:
    """Put a model back as it was before `apply`, bit for bit. Does nothing to a model without a plan."""
    core = _causal_lm(model)
    slotted = [module for module in core.modules() if isinstance(module, _SlottedLayer)]
    if slotted:
        with torch.no_grad():
            for parameter, saved in slotted[0]._truedepth_slot.applied.replaced_weights:
                parameter.copy_(saved)
    for layer in slotted:
        del layer._truedepth_slot
        layer.__class__ = type(layer).__mro__[2]
    return model


def applied_plan(model: nn.Module) -> DepthPlan | None:
    """The plan that the model runs, or None for a model as it came."""
    for module in _causal_lm(model).modules():
        if isinstance(module, _SlottedLayer):
            return module._truedepth_slot.applied.plan
    return None


@functools.cache
def _slotted(layer_class: type[nn.Module]) -> type[nn.Module]:
    return type(f"Slotted{layer_class.__name__}", (_SlottedLayer, layer_class), {})


def _causal_lm(model: nn.Module) -> Any:
    """The `transformers` model inside a PEFT wrapper, or the model itself."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if unwrap is not None else model


def _attention_types(model: Any, num_layers: int) -> list[str]:
    return getattr(model.config, "layer_types", None) or ["full_attention"] * num_layers


def _check(plan: DepthPlan, family: Family, layers: Sequence[nn.Module]) -> None:
    if plan.num_layers != len(layers):
        raise PlanError(
            f"the plan '{plan}' is for {plan.num_layers} layers, but the model has {len(layers)}; "
            "make a plan for this model"
        )
    for stage in plan.stages:
        if len(stage.layers) == 1:
            continue
        family.require("merge" if stage.merged else plan.form)
        # A forward patched into the instance (accelerate's offloading and multi-device hooks) would run in place
        # of the group, and its layers may live on different devices.
        if any("forward" in layers[index].__dict__ for index in stage.layers):
            raise UnsupportedModelError(
                f"stage '{stage}' needs its layers on one device, but the model is dispatched over several or "
                "offloaded; load it on one device, or use a plan that only skips layers"
            )


def _slots(applied: _Applied) -> list[_Slot]:
    """Where in the model's loop each stage runs, and what each slot must do besides."""
    plan, types = applied.plan, applied.types
    stages_at: dict[int, list[Stage]] = {}
    lenders: set[str] = set()
    at = 0
    for stage in plan.stages:
        # Not before the stage ahead of it, and not before its layers' own inputs have been seen.
        at = max(at, *stage.layers)
        stages_at.setdefault(at, []).append(stage)
        lenders.update(types[index] for index in stage.layers if types[index] != types[at])
    used = set(plan.layers_used)
    first_of_type = {types.index(kind) for kind in types}
    return [
        _Slot(
            index=index,
            stages=tuple(stages_at.get(index, ())),
            skipped=index not in used or _is_merged_away(plan, index),
            measures_cache=index == 0 or index in first_of_type,
            lends=types[index] in lenders,
            applied=applied,
        )
        for index in range(plan.num_layers)
    ]


def _is_merged_away(plan: DepthPlan, index: int) -> bool:
    return any(stage.merged and index in stage.layers[1:] for stage in plan.stages)


def _merge_weights(applied: _Applied) -> None:
    """Give the first layer of each merged stage the mean of the stage's weights; remember its own."""
    for stage in applied.plan.stages:
        if not stage.merged:
            continue
        members = [dict(applied.layers[index].named_parameters()) for index in stage.layers]
        with torch.no_grad():
            for name, parameter in members[0].items():
                applied.replaced_weights.append((parameter, parameter.detach().clone()))
                mean = torch.stack([weights[name].float() for weights in members]).mean(0)
                parameter.copy_(mean)


def _run(slot: _Slot, stage: Stage, hidden: Tensor, inputs: LayerInputs) -> Tensor:
    """Run a stage through the layer's own call, so that hooks and gradient checkpointing see one layer a stage."""
    first = stage.layers[0]
    layer = slot.applied.layers[first]
    if stage.is_group:
        owner = slot.applied.layers[slot.index]
        output = nn.Module.__call__(owner, hidden, truedepth_group=stage, **inputs)
    else:
        output = nn.Module.__call__(layer, hidden, **_inputs_of(slot, first, inputs))
    hidden = output[0] if isinstance(output, tuple) else output
    return hidden


def _inputs_of(slot: _Slot, index: int, inputs: LayerInputs) -> LayerInputs:
    """The inputs of layer `index`, given those of the slot it runs in."""
    kind = slot.applied.types[index]
    return inputs if kind == slot.applied.types[slot.index] else {**inputs, **slot.applied.lent[kind]}


def _decoding(slot: _Slot, hidden: Tensor, past: Cache | None) -> bool:
    """Whether a forward continues a sequence (see `apply`). The cache remembers, since it is the sequence."""
    if past is None:
        return False
    decoding = hidden.shape[1] == 1 or getattr(past, "truedepth_decoding", False)
    if slot.index == 0:
        if hidden.shape[1] > 1 and decoding and past.get_seq_length() == 0:  # the cache was reset
            decoding = False
        past.truedepth_decoding = decoding  # type: ignore[attr-defined]
    return decoding


def _keep_cache_true(slot: _Slot, cache: Cache | None, hidden: Tensor) -> None:
    """Account for the tokens that a skipped layer does not see in its cache entry."""
    if cache is None:
        return
    if slot.applied.free_skipped_cache:
        _free(slot, cache)
    if slot.measures_cache:
        _lengthen(slot, cache, hidden.new_zeros(hidden.shape[0], 1, hidden.shape[1], 1))


def _entry(cache: Cache, index: int) -> Any:
    """The cache entry of a layer, or None where a lazily growing cache has none yet."""
    return cache.layers[index] if index < len(cache.layers) else None


def _free(slot: _Slot, cache: Cache) -> None:
    """Drop what prefill wrote for a layer that decoding skips, keeping its length where it is asked for."""
    entry = _entry(cache, slot.index)
    if not isinstance(entry, DynamicLayer) or entry.keys is None or entry.keys.shape[-1] == 1:
        return
    marker = entry.keys.new_zeros(entry.keys.shape[0], 1, entry.get_seq_length(), 1)
    entry.reset()
    if slot.measures_cache:
        _lengthen(slot, cache, marker)


def _lengthen(slot: _Slot, cache: Cache, marker: Tensor) -> None:
    """Append zeros for the new tokens: as wide as the entry is, or one number a token where it is empty.

    Args:
        marker: zeros, (B, 1, T, 1); only its length counts.
    """
    entry = _entry(cache, slot.index)
    keys = values = marker
    if entry is not None and entry.keys is not None:
        batch, _, new, _ = marker.shape
        keys = marker.new_zeros(batch, entry.keys.shape[1], new, entry.keys.shape[3])
        values = marker.new_zeros(batch, entry.values.shape[1], new, entry.values.shape[3])
    cache.update(keys, values, slot.index)
