"""truedepth makes a pre-trained language model effectively shallower, and says what that costs.

    import truedepth

    loaded = truedepth.load("smollm2-135m")
    plan = truedepth.DepthPlan.parse("0-19 (20|21) (22|23) 24-29", num_layers=30)
    truedepth.apply(loaded.model, plan)  # generate, evaluate or train as before
    truedepth.restore(loaded.model)

`truedepth.plan` explains plans and their notation.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from truedepth.errors import TruedepthError
from truedepth.plan import DepthPlan, Stage

if TYPE_CHECKING:
    from truedepth.models.load import LoadedModel, load
    from truedepth.models.rewire import applied_plan, apply, restore

__version__ = "0.1.0"

__all__ = [
    "DepthPlan",
    "LoadedModel",
    "Stage",
    "TruedepthError",
    "__version__",
    "applied_plan",
    "apply",
    "load",
    "restore",
]

# Resolved on first use: they import torch and transformers, which takes seconds.
_LAZY = {
    "LoadedModel": "truedepth.models.load",
    "applied_plan": "truedepth.models.rewire",
    "apply": "truedepth.models.rewire",
    "load": "truedepth.models.load",
    "restore": "truedepth.models.rewire",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'truedepth' has no attribute '{name}'")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
