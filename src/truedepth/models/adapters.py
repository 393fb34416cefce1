"""What PEFT has put on a model, for those who run its layers without its own forward.

Most kinds of adapters stand inside of the decoder layers and change what those do with a token, whoever calls them.
Others act in the forward around them, as virtual tokens before the prompt, say, or by a first pass that weighs
adapters; and some on all tokens of a call together, which batches and drafts would change. The tokens would be another
model's, so only the kinds that are known to be of the first sort are taken, and all others are refused by name.

What is PEFT's is told by where its classes come from: it need not be installed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from truedepth.errors import UnsupportedModelError
from truedepth.models.private_transformers import has_hooks, hooks_before

_IN_LAYERS = """
    ADALORA ADAMSS ADAPTION_PROMPT BEFT BOFT C3A DEFT DELORA FOURIERFT FROD GLORA GRALORA HIRA HRA IA3 LN_TUNING LOHA
    LOKR LORA MISS OFT OSF PEANUT PSOFT PVERA RANDLORA ROAD SHIRA SUPERTUNING TINYLORA TRAINABLE_TOKENS UNILORA VBLORA
    VERA WAVEFT
"""
IN_LAYERS = frozenset(_IN_LAYERS.split())
"""The kinds, as PEFT names their types, that act inside of a model's layers and embedding, on each token alike."""

_TUNERS = "peft.tuners."


def unwrapped(model: nn.Module) -> Any:
    """The `transformers` model inside of PEFT's wrappers, or the model itself."""
    return list(_wrappers(model))[-1]


def require_in_layers(model: nn.Module) -> None:
    """Refuse a model with an active adapter, or with a hook, that does more than change what layers do with a token.

    Args:
        model: bare or wrapped by PEFT.

    Raises:
        UnsupportedModelError: with the kind of the adapter.
    """
    wrappers = list(_wrappers(model))
    core: Any = wrappers.pop()
    wrappers.append(getattr(vars(core).get("prepare_inputs_for_generation"), "__self__", core))  # inside of generate
    kinds = {_kind_of(config) for wrapper in wrappers for config in _configs(wrapper)}
    for module in core.modules():
        kinds |= set(_kinds_of_module(module))
    if outside := sorted(kinds - IN_LAYERS):
        raise UnsupportedModelError(
            f"the model has an adapter of kind {', '.join(outside)}, which is not known to act inside of the decoder "
            "layers and on each token by itself; the tokens would be wrong here. Use the PEFT model's own generate, "
            "or, to go without the adapter, do this inside of 'with model.disable_adapter():'"
        )
    if any(_of_peft(hook) for module in core.modules() for hook in hooks_before(module)):
        raise UnsupportedModelError(
            "adapters are chosen for each row of a batch (adapter_names or the like), and rows here come and go; leave "
            "that out, and generate for one adapter at a time after model.set_adapter(name)"
        )
    for module in (core, getattr(core, "base_model", core)):
        if has_hooks(module):
            raise UnsupportedModelError(
                f"there are forward hooks on the {type(module).__name__}, which is not called as a whole here, so that "
                "they would do nothing; remove them, or use the model's own generate"
            )


def require_no_virtual_tokens(model: nn.Module) -> None:
    """Refuse a model of PEFT whose own forward puts virtual tokens before the tokens of each call, not of each prompt.

    Raises:
        UnsupportedModelError: with the kind of the adapter.
    """
    for wrapper in _wrappers(model):
        for config in _configs(wrapper):
            if config.is_prompt_learning:
                raise UnsupportedModelError(
                    f"the model has an adapter of kind {_kind_of(config)}, which adds virtual tokens at every call, "
                    "and so at every step of decoding; give the model without it, or do this inside of 'with "
                    "model.disable_adapter():'"
                )


def require_plain_layers(layers: Sequence[nn.Module]) -> None:
    """Refuse decoder layers that have each become a part of an adapter.

    Raises:
        UnsupportedModelError: with the kind of the adapter.
    """
    for layer in layers:
        if kinds := set(_kinds_of_module(layer)):
            raise UnsupportedModelError(
                f"an adapter of kind {', '.join(sorted(kinds))} stands around the decoder layers and passes on more "
                "than hidden states; put the plan on a model without it"
            )


def calls_its_linears(module: Any) -> bool:
    """Whether a module calls the linear modules inside of it, rather than reading their weights.

    False for all that PEFT puts in a layer, but for plain LoRA.
    """
    if not _is_of(_TUNERS, module):
        return True
    plain_lora = type(module).__module__ == f"{_TUNERS}lora.layer" and type(module).__name__ == "Linear"
    return plain_lora and not module.lora_variant and "forward" not in vars(module)


def modules_as_they_came(module: nn.Module) -> Iterator[nn.Module]:
    """A module and all inside of it, but for what adapters have added."""
    if _is_of(_TUNERS, module) and isinstance(base := getattr(module, "base_layer", None), nn.Module):
        yield from modules_as_they_came(base)
        return
    yield module
    for child in module.children():
        yield from modules_as_they_came(child)


def has_adapters(module: nn.Module) -> bool:
    """Whether PEFT has put something on a module or on parts of it."""
    return any(_is_of("peft.", part) for part in module.modules())


def _wrappers(model: nn.Module) -> Iterator[nn.Module]:
    """A model, what it wraps, and so on, down to the `transformers` model."""
    yield model
    if _is_of("peft.", model):  # a PeftModel has a tuner or the model as its `base_model`, a tuner has it as `model`
        inner: Any = model if _is_of(_TUNERS, model) else model.base_model
        yield from _wrappers(inner.model if _is_of(_TUNERS, inner) else inner)


def _configs(wrapper: Any) -> Iterator[Any]:
    """Of a `PeftModel`, the configurations of its adapters, unless they are disabled."""
    if _is_of("peft.", wrapper) and not getattr(wrapper, "_adapters_disabled", False):
        yield from wrapper.peft_config.values()


def _kind_of(config: Any) -> str:
    return str(getattr(config.peft_type, "value", config.peft_type))


def _kinds_of_module(module: Any) -> Iterator[str]:
    """Of a module that PEFT has put in, and that is not switched off, the kinds whose code it runs."""
    if not _is_of(_TUNERS, module) or getattr(module, "disable_adapters", False):
        return
    for code in (type(module), vars(module).get("forward")):
        path = getattr(code, "__module__", None) or ""
        if path.startswith(_TUNERS) and path.count(".") > 2:  # peft.tuners.lora.layer
            yield path.split(".")[2].upper()
    for adapter, variant in getattr(module, "lora_variant", {}).items():
        if adapter in module.active_adapters and type(variant).__name__.startswith("ALora"):
            yield "activated LoRA (aLoRA)"


def _is_of(package: str, module: nn.Module) -> bool:
    """Whether a module is of a class from a package, or derived from one."""
    return _derives(package, type(module))  # type: ignore[arg-type]  # mypy: a Module class is hashable


@functools.cache
def _derives(package: str, kind: type) -> bool:
    return any(base.__module__.startswith(package) for base in kind.__mro__)


def _of_peft(hook: Any) -> bool:
    code = hook.func if isinstance(hook, functools.partial) else hook
    return str(getattr(code, "__module__", "")).startswith("peft.")
