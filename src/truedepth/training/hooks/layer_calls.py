"""Put something around the calls of a live model's decoder layers, and take it off again.

Like `truedepth.models.rewire`, this gives each layer a subclass of its own class: no module moves and no parameter is
renamed, so that PEFT, accelerate and `save_pretrained` see the model they know. What is put around a layer stands
outside of its hooks and of gradient checkpointing, and therefore runs once a forward, never in a recomputation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from truedepth.errors import PlanError
from truedepth.families import family_of
from truedepth.models.rewire import applied_plan, causal_lm

LayerCall = Callable[..., Tensor]
"""`call(hidden, **inputs)`: a decoder layer, (B, T, D) to (B, T, D), with its wrappers so far."""


class LayerWrapper(Protocol):
    """Something that is put around the calls of decoder layers."""

    def __call__(self, layer: nn.Module, index: int, call: LayerCall, hidden: Tensor, inputs: dict[str, Any]) -> Tensor:
        """Do the work of one call.

        Args:
            layer: the decoder layer.
            index: its number.
            call: what would have been called: `call(hidden, **inputs)`.
            hidden: (B, T, D).
            inputs: the keyword arguments that the model hands to the layer: mask, position embeddings, ...

        Returns:
            The hidden states after the layer, (B, T, D).
        """


class _WrappedLayer(nn.Module):
    """Mixed in front of a decoder layer's class by `wrap_layers`."""

    _truedepth_wrappers: tuple[int, list[LayerWrapper]]

    def __call__(self, hidden_states: Tensor, *args: Any, **inputs: Any) -> Any:
        index, wrappers = self._truedepth_wrappers

        def call(hidden: Tensor, **inputs: Any) -> Tensor:
            output = super(_WrappedLayer, self).__call__(hidden, *args, **inputs)
            hidden = output[0] if isinstance(output, tuple) else output
            return hidden

        for wrapper in wrappers:
            call = _wrapped(wrapper, self, index, call)
        return call(hidden_states, **inputs)


def _wrapped(wrapper: LayerWrapper, layer: nn.Module, index: int, inner: LayerCall) -> LayerCall:
    return lambda hidden, **inputs: wrapper(layer, index, inner, hidden, inputs)


@contextmanager
def wrap_layers(model: nn.Module, wrapper: LayerWrapper) -> Iterator[None]:
    """Put `wrapper` around the calls of all decoder layers of a causal language model, while the context lasts.

    Contexts may be nested: what came later is further out. Backward passes under gradient
    checkpointing belong inside, and so does the restoring of a plan that is applied inside.

    Raises:
        UnsupportedModelError: the model's family is unknown.
        PlanError: the model runs a plan.
    """
    core = causal_lm(model)
    layers: list[Any] = list(family_of(core.config).decoder_layers(core))
    if (plan := applied_plan(core)) is not None:
        raise PlanError(f"the model runs the plan '{plan}'; restore it first, and apply the plan afterwards")
    for index, layer in enumerate(layers):
        if not isinstance(layer, _WrappedLayer):
            layer.__class__ = _wrapped_class(type(layer))  # type: ignore[arg-type]  # a Module class is hashable
            vars(layer)["_truedepth_wrappers"] = (index, [])
        layer._truedepth_wrappers[1].append(wrapper)
    try:
        yield
    finally:
        for layer in layers:
            wrappers = layer._truedepth_wrappers[1]
            wrappers.remove(wrapper)
            # Sharding gives a layer yet another class. It stays, and so does ours below it, with nothing to do.
            if not wrappers and type(layer).__mro__[1] is _WrappedLayer:
                del layer._truedepth_wrappers
                layer.__class__ = type(layer).__mro__[2]


def zero_grad_call(call: LayerCall, layer: nn.Module, hidden: Tensor, inputs: dict[str, Any]) -> Tensor:
    """Call a layer without computing anything: the hidden states pass unchanged, its parameters get gradients of zero.

    Its hooks run, so sharded parameters are gathered and reduced as on ranks where the layer works, and no parameter
    is left without a gradient that another rank, or an optimizer, waits for.
    """

    def pass_through(hidden: Tensor) -> Tensor:
        trainable = [parameter for parameter in layer.parameters() if parameter.requires_grad]
        output: Tensor = _ZeroGradCall.apply(hidden, *trainable)  # type: ignore[no-untyped-call]
        return output

    return call(hidden, **inputs, truedepth_instead=pass_through)


class _ZeroGradCall(torch.autograd.Function):
    """The identity of its first argument; the gradients of the others are zero."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients[0], *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)


@functools.cache
def _wrapped_class(layer_class: type[nn.Module]) -> type[nn.Module]:
    """The class of a layer with something around it. Sharding policies find decoder layers by their name."""

    def forward(layer: nn.Module, hidden_states: Tensor, *args: Any, **inputs: Any) -> Any:
        instead: Callable[[Tensor], Tensor] | None = inputs.pop("truedepth_instead", None)
        if instead is None:
            return layer_class.forward(layer, hidden_states, *args, **inputs)
        return instead(hidden_states)

    return type(layer_class.__name__, (_WrappedLayer, layer_class), {"forward": forward})
