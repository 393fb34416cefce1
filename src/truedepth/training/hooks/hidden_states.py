"""Reading a model's hidden states while it runs, whatever plan it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from truedepth.families import Family


@dataclass
class Reading:
    """The hidden states of one forward.

    Attributes:
        outputs: of the layers asked for, (B, T, D), by layer. A group's output is its first layer's.
    """

    outputs: dict[int, Tensor] = field(default_factory=dict)
    _final: Tensor | None = None

    @property
    def final(self) -> Tensor:
        """What goes into the final norm, (B, T, D)."""
        assert self._final is not None, "the model has not run"
        return self._final

    def keep_final(self, hidden: Tensor) -> None:
        if self._final is None:  # the norm is called again, on parts of this, when losses are computed
            self._final = hidden


@contextmanager
def reading(core: Any, family: Family, layers: Sequence[int] = ()) -> Iterator[Reading]:
    """Read the states of the forward that is made in this context.

    Args:
        core: the causal language model.
        layers: whose outputs are wanted, as far as they run.
    """
    found = Reading()
    modules = family.decoder_layers(core)
    norm: nn.Module = core.get_submodule(family.final_norm)
    with ExitStack() as stack:
        hook = norm.register_forward_pre_hook(lambda _, inputs: found.keep_final(inputs[0]))
        stack.callback(hook.remove)
        for layer in layers:
            stack.callback(modules[layer].register_forward_hook(_keeper(found, layer)).remove)
        yield found


def _keeper(found: Reading, layer: int) -> Any:
    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        found.outputs[layer] = output[0] if isinstance(output, tuple) else output

    return keep
