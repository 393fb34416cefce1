"""truedepth makes a pre-trained language model effectively shallower, and says what that costs.

    import truedepth

    loaded = truedepth.load("smollm2-135m")
    plan = truedepth.DepthPlan.parse("0-19 (20|21) (22|23) 24-29", num_layers=30)
    truedepth.apply(loaded.model, plan)  # generate, evaluate or train as before
    truedepth.restore(loaded.model)

    for piece in truedepth.stream(loaded, "Why is the sky blue?", draft=plan):  # the unmodified model's text, faster
        print(piece.text, end="")

`truedepth.plan` explains plans and their notation, `truedepth.generation` how text is made.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from truedepth.errors import TruedepthError
from truedepth.plan import DepthPlan, Stage

if TYPE_CHECKING:
    from truedepth.decoding.custom_generate import speculate
    from truedepth.decoding.engine import Engine
    from truedepth.decoding.request import Request
    from truedepth.decoding.result import GenerationResult
    from truedepth.decoding.sampling import Sampling
    from truedepth.generation import generate, stream
    from truedepth.models.load import LoadedModel, load
    from truedepth.models.rewire import applied_plan, apply, restore

__version__ = "0.1.0"

__all__ = [
    "DepthPlan",
    "Engine",
    "GenerationResult",
    "LoadedModel",
    "Request",
    "Sampling",
    "Stage",
    "TruedepthError",
    "__version__",
    "applied_plan",
    "apply",
    "generate",
    "load",
    "restore",
    "speculate",
    "stream",
]

# Resolved on first use: they import torch and transformers, which takes seconds.
_LAZY = {
    "Engine": "truedepth.decoding.engine",
    "GenerationResult": "truedepth.decoding.result",
    "LoadedModel": "truedepth.models.load",
    "Request": "truedepth.decoding.request",
    "Sampling": "truedepth.decoding.sampling",
    "applied_plan": "truedepth.models.rewire",
    "apply": "truedepth.models.rewire",
    "generate": "truedepth.generation",
    "load": "truedepth.models.load",
    "restore": "truedepth.models.rewire",
    "speculate": "truedepth.decoding.custom_generate",
    "stream": "truedepth.generation",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'truedepth' has no attribute '{name}'")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
