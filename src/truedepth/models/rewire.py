"""Run a depth plan on a live `transformers` model, and put the model back.

The model's own forward stays in charge: it builds masks, rotary embeddings and caches, and calls its
decoder layers one after the other. `apply` gives each decoder layer a *slot*: a subclass of the layer's own
class whose call runs the stages that the plan puts at this point of the loop (none, the layer itself, a
group, ...). No module moves and no parameter is renamed, so state dicts, PEFT adapters, `Trainer` and
`generate` see the model they know.

Three facts shape the details:

- A layer is handed the mask and rotary embedding of *its* attention type. A stage therefore runs in the slot
  of its last layer, and a layer of another type borrows what its own slot was handed earlier in the same
  forward.
- `transformers` asks the first layer (and the first layer of each attention type) of a cache how long it is.
  Where the plan skips such a layer, or other ranks hold it, its cache entry is kept at the true length by zeros
  that nobody reads.
- Gradient checkpointing calls a layer once more in the backward pass, when other forwards may have come
  between. What a stage needs is therefore in the arguments of that call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer, QuantizedCache

from truedepth.errors import PlanError, UnsupportedModelError
from truedepth.families import Family, family_of
from truedepth.models.adapters import has_adapters, require_plain_layers, unwrapped
from truedepth.models.fuse import mean_of
from truedepth.models.private_transformers import is_quantized
from truedepth.models.stages import LayerInputs, is_held, run_group
from truedepth.plan import DepthPlan, Stage
from truedepth.records.given import require_type

ModelT = TypeVar("ModelT", bound=nn.Module)

_BY_ATTENTION_TYPE = ("attention_mask", "position_embeddings")
"""Those inputs of a decoder layer that depend on its attention type (full, sliding)."""

_GROWING = (DynamicLayer, DynamicSlidingWindowLayer)
"""The entries of a dynamic cache."""


@dataclass
class _Applied:
    """What the slots of one model share."""

    plan: DepthPlan
    family: Family
    layers: list[nn.Module]
    types: list[str]
    free_skipped_cache: bool
    inputs_by_type: dict[str, dict[str, Any]] = field(default_factory=dict)
    replaced_weights: list[tuple[nn.Parameter, Tensor]] = field(default_factory=list)


@dataclass
class _Slot:
    """One decoder layer's position in the model's loop."""

    index: int
    stages: tuple[Stage, ...]
    skipped: bool
    measures_cache: bool
    keeps_inputs: bool
    applied: _Applied


class _SlottedLayer(nn.Module):
    """Mixed in front of a decoder layer's class by `apply`."""

    _truedepth_slot: _Slot

    def __call__(self, hidden_states: Tensor, *args: Any, **inputs: Any) -> Any:
        slot = self._truedepth_slot
        applied = slot.applied
        if applied.plan.prefill == "full" and not _decoding(slot, hidden_states, inputs.get("past_key_values")):
            if not is_held(self):
                _keep_cache_true(slot, inputs.get("past_key_values"), hidden_states)
            return super().__call__(hidden_states, *args, **inputs)
        if slot.keeps_inputs:
            kind = applied.types[slot.index]
            applied.inputs_by_type[kind] = {name: inputs[name] for name in _BY_ATTENTION_TYPE if name in inputs}
        if slot.skipped:
            _keep_cache_true(slot, inputs.get("past_key_values"), hidden_states)
        for stage in slot.stages:
            hidden_states = _run(slot, stage, hidden_states, inputs)  # (B, T, D)
        if slot.index == len(applied.layers) - 1:
            applied.inputs_by_type.clear()
        return hidden_states

    def _truedepth_call(self, hidden_states: Tensor, **inputs: Any) -> Any:
        """Call the layer as without a plan: with its hooks and gradient checkpointing."""
        return super().__call__(hidden_states, **inputs)


def apply(model: ModelT, plan: DepthPlan, *, free_skipped_cache: bool = False) -> ModelT:
    """Make a causal language model run a plan, in place. Applying again replaces the plan.

    Args:
        model: a `transformers` causal language model of a supported family, bare or wrapped by PEFT.
        plan: a plan for the model's number of layers. With `prefill="full"`, a forward over more than one
            token a sequence on a cache that has not decoded yet runs every layer, and so does a forward on an
            empty cache or without one; from the first single-token step on, that cache's sequence runs the
            plan.
        free_skipped_cache: with `prefill="full"`, drop the skipped layers' entries of a dynamic cache at the
            first decode step. The cache can then not be cropped back and continued by the full model.

    Returns:
        The same model.

    Raises:
        UnsupportedModelError: the family is unknown, or it cannot run what the plan asks for.
        PlanError: the plan is for another number of layers.
        Both leave the model as it was, with the plan that it had.
    """
    require_type("the plan", plan, DepthPlan, "a DepthPlan, such as DepthPlan.parse(notation, num_layers)", PlanError)
    core = causal_lm(model)
    family, layers = _family_and_layers(core)
    _check(plan, core, family, layers)
    restore(model)
    types = getattr(core.config, "layer_types", None) or ["full_attention"] * len(layers)
    applied = _Applied(plan, family, layers, types, free_skipped_cache)
    for layer, slot in zip(layers, _slots(applied), strict=True):
        layer.__class__ = _slotted(type(layer))  # type: ignore[arg-type]  # mypy: a Module class is hashable
        vars(layer)["_truedepth_slot"] = slot
    _merge_weights(applied)
    return model


def restore(model: ModelT) -> ModelT:
    """Put a model back as it was before `apply`, bit for bit. Does nothing to a model without a plan."""
    core = causal_lm(model)
    slotted = [module for module in core.modules() if isinstance(module, _SlottedLayer)]
    if slotted:
        with torch.no_grad():
            for parameter, saved in slotted[0]._truedepth_slot.applied.replaced_weights:
                parameter.copy_(saved)
    for layer in slotted:
        del layer._truedepth_slot
        layer.__class__ = layer_class(layer)  # type: ignore[assignment]
    return model


def applied_plan(model: nn.Module) -> DepthPlan | None:
    """The plan that the model runs, or None for a model as it came."""
    for module in causal_lm(model).modules():
        if isinstance(module, _SlottedLayer):
            return module._truedepth_slot.applied.plan
    return None


def mark_decoding(cache: Cache) -> None:
    """Say that what follows on this cache is decoding, even where several tokens come at once.

    For plans with `prefill="full"`: the next forward over the cache runs the plan.
    """
    cache.truedepth_decoding = True  # type: ignore[attr-defined]


def call_layer(layer: nn.Module, hidden: Tensor, inputs: LayerInputs) -> Tensor:
    """One decoder layer as it came, whatever plan its model runs: (B, T, D) to (B, T, D)."""
    output = layer._truedepth_call(hidden, **inputs) if isinstance(layer, _SlottedLayer) else layer(hidden, **inputs)
    hidden = output[0] if isinstance(output, tuple) else output
    return hidden


def layer_class(layer: nn.Module) -> type[nn.Module]:
    """The class of a decoder layer as it came, whatever plan its model runs."""
    return type(layer).__mro__[2] if isinstance(layer, _SlottedLayer) else type(layer)


@functools.cache
def _slotted(layer_class: type[nn.Module]) -> type[nn.Module]:
    """The class of a layer with a slot. Device maps and sharding policies find decoder layers by their name."""

    def forward(layer: nn.Module, hidden_states: Tensor, *args: Any, **inputs: Any) -> Any:
        group: Callable[[Tensor, LayerInputs], Tensor] | None = inputs.pop("truedepth_group", None)
        if group is None:  # not by super(): hooks put on under a plan keep this method beyond `restore`
            return layer_class.forward(layer, hidden_states, *args, **inputs)
        return group(hidden_states, inputs)

    return type(layer_class.__name__, (_SlottedLayer, layer_class), {"forward": forward})


def causal_lm(model: nn.Module) -> Any:
    """The `transformers` model inside of PEFT's wrappers, or the model itself.

    Raises:
        UnsupportedModelError: there is none.
    """
    core = unwrapped(model)
    if not isinstance(core, nn.Module) or not hasattr(core, "config"):
        raise UnsupportedModelError(
            f"a {type(core).__name__} is not a transformers model; give the model inside it, such as model.module, "
            "or loaded.model of what truedepth.load returns"
        )
    return core


def _family_and_layers(core: Any) -> tuple[Family, list[nn.Module]]:
    family = family_of(core.config)
    try:
        return family, family.decoder_layers(core)
    except AttributeError:
        raise UnsupportedModelError(
            f"a {type(core).__name__} is not a causal language model: it has no '{family.layers}'; "
            "load it with AutoModelForCausalLM"
        ) from None


def _check(plan: DepthPlan, core: Any, family: Family, layers: Sequence[nn.Module]) -> None:
    if plan.num_layers != len(layers):
        raise PlanError(
            f"the plan '{plan}' is for {plan.num_layers} layers, but the model has {len(layers)}; "
            "make a plan for this model"
        )
    require_plain_layers(layers)
    for stage in plan.stages:
        if len(stage.layers) == 1:
            continue
        if stage.merged:
            family.require("merge")
            _require_plain_weights(stage, core, layers)
        # A forward patched into the instance (accelerate's offloading and multi-device hooks) would run in
        # place of the group, and its layers may live on different devices.
        if any("forward" in layers[index].__dict__ for index in stage.layers):
            raise UnsupportedModelError(
                f"stage '{stage}' needs its layers on one device, but the model is dispatched over several "
                "or offloaded; load it on one device, or use a plan that only skips layers"
            )


def _require_plain_weights(stage: Stage, core: Any, layers: Sequence[nn.Module]) -> None:
    """Refuse the mean of numbers that are not weights: a quantizer's codes, an adapter's factors."""
    modules = [module for index in stage.layers for module in layers[index].modules()]
    problem = None
    if is_quantized(core):
        problem = "are quantized; load the model without quantization"
    elif any(map(has_adapters, modules)):
        problem = "have adapters on them; merge those into the weights first, with merge_and_unload()"
    if problem is not None:
        raise UnsupportedModelError(f"stage '{stage}' takes the mean of its layers' weights, but they {problem}")


def _slots(applied: _Applied) -> list[_Slot]:
    """Where in the model's loop each stage runs, and what each slot must do besides."""
    plan, types = applied.plan, applied.types
    stages_at: dict[int, list[Stage]] = {}
    borrowed_from: set[str] = set()
    at = 0
    for stage in plan.stages:
        # Not before the stage ahead of it, and not before its layers' own inputs have been seen.
        at = max(at, *stage.layers)
        stages_at.setdefault(at, []).append(stage)
        borrowed_from.update(types[index] for index in stage.layers if types[index] != types[at])
    used = {layer for stage in plan.stages for layer in stage.layers_run}
    first_of_type = {types.index(kind) for kind in types}
    return [
        _Slot(
            index=index,
            stages=tuple(stages_at.get(index, ())),
            skipped=index not in used or not is_held(applied.layers[index]),
            measures_cache=index == 0 or index in first_of_type,
            keeps_inputs=types[index] in borrowed_from,
            applied=applied,
        )
        for index in range(plan.num_layers)
    ]


def _merge_weights(applied: _Applied) -> None:
    """Give the first layer of each merged stage the mean of the stage's weights; remember its own."""
    for stage in applied.plan.stages:
        if not stage.merged:
            continue
        members = [dict(applied.layers[index].named_parameters()) for index in stage.layers]
        with torch.no_grad():
            for name, parameter in members[0].items():
                applied.replaced_weights.append((parameter, parameter.detach().clone()))
                parameter.copy_(mean_of([weights[name] for weights in members]))


def _run(slot: _Slot, stage: Stage, hidden: Tensor, inputs: LayerInputs) -> Tensor:
    """Run a stage by one call of its first layer, where hooks and gradient checkpointing see it."""
    applied = slot.applied
    layers: list[Any] = [applied.layers[index] for index in stage.layers]
    borrowed = [_borrowed(slot, index) for index in stage.layers]

    def group(hidden: Tensor, inputs: LayerInputs) -> Tensor:
        given = [{**inputs, **others} for others in borrowed]
        return run_group(layers, given, applied.family, applied.plan.form, hidden)

    given = {"truedepth_group": group} if stage.is_group else borrowed[0]
    return call_layer(layers[0], hidden, {**inputs, **given})


def _borrowed(slot: _Slot, index: int) -> LayerInputs:
    """What layer `index` is given in place of the inputs of the slot that it runs in."""
    kind = slot.applied.types[index]
    return {} if kind == slot.applied.types[slot.index] else slot.applied.inputs_by_type[kind]


def _decoding(slot: _Slot, hidden: Tensor, past: Cache | None) -> bool:
    """Whether a forward continues a sequence (see `apply`). The cache remembers, since it is the sequence."""
    if past is None:
        return False
    if slot.index == 0:
        single, before = hidden.shape[1] == 1, getattr(past, "truedepth_decoding", None)
        # A static cache has its length on the device: asking at each step would stall it and break graphs.
        new_prompt = (before is None or not single) and past.get_seq_length() == 0
        past.truedepth_decoding = not new_prompt and (single or bool(before))  # type: ignore[attr-defined]
    return bool(past.truedepth_decoding)  # type: ignore[attr-defined]


def _keep_cache_true(slot: _Slot, cache: Cache | None, hidden: Tensor) -> None:
    """Account for the tokens that a skipped layer does not see in its cache entry."""
    if cache is None:
        return
    if slot.applied.free_skipped_cache:
        _free(slot, cache)
    entry = _entry(cache, slot.index)
    if slot.measures_cache:
        if isinstance(cache, QuantizedCache):
            raise UnsupportedModelError(
                f"the plan skips layer {slot.index}, whose entry in a quantized cache cannot be kept true to "
                "length; use a dynamic or static cache, or keep that layer"
            )
        _lengthen(slot, cache, hidden.new_zeros(hidden.shape[0], 1, hidden.shape[1], 1))
    elif entry is None or (type(entry) in _GROWING and not entry.is_initialized):
        # Without tokens, but of some shape: `crop` fails on an entry without one.
        _lengthen(slot, cache, hidden.new_zeros(hidden.shape[0], 1, 0, 1))


def _entry(cache: Cache, index: int) -> Any:
    """The cache entry of a layer, or None where a lazily growing cache has none yet."""
    return cache.layers[index] if index < len(cache.layers) else None


def _free(slot: _Slot, cache: Cache) -> None:
    """Drop what prefill wrote for a layer that decoding skips, keeping its length where it is asked for."""
    entry = _entry(cache, slot.index)
    if type(entry) not in _GROWING or entry.keys is None or entry.keys.shape[-1] == 1:
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
        keys, values = (held.new_zeros(batch, held.shape[1], new, held.shape[3]) for held in (entry.keys, entry.values))
    cache.update(keys, values, slot.index)
