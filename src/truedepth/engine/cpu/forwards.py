"""Forwards that are put in the place of some modules' own, and taken away again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class _Replaced:
    """One module, and what it was when its forward was replaced."""

    module: nn.Module
    forward: Forward
    kind: type[nn.Module]
    weight: Any


class ReplacedForwards:
    """Modules that compute by other forwards, until `put_back`."""

    def __init__(self, *forwards: tuple[nn.Module, Forward]) -> None:
        self._replaced = [
            _Replaced(module, forward, type(module), module._parameters.get("weight")) for module, forward in forwards
        ]
        for module, forward in forwards:
            vars(module)["forward"] = forward

    def hold_within(self, parts: frozenset[int]) -> bool:
        """Whether the modules are among some parts of a model, by `id`, and are still what they were.

        They are not once their class, weight or forward is another, as by a parametrization.
        """
        return all(
            id(each.module) in parts
            and type(each.module) is each.kind
            and each.module._parameters.get("weight") is each.weight
            and vars(each.module).get("forward") is each.forward
            for each in self._replaced
        )

    def put_back(self) -> None:
        """Have the modules compute by their own forwards; one that somebody else has put there since stays."""
        for each in self._replaced:
            if vars(each.module).get("forward") is each.forward:
                del vars(each.module)["forward"]
