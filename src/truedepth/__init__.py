"""truedepth makes a pre-trained language model effectively shallower, and says what that costs.

    import truedepth

    loaded = truedepth.load("smollm2-135m")
    plan = truedepth.DepthPlan.parse("0-19 (20|21) (22|23) 24-29", num_layers=30)
    truedepth.apply(loaded.model, plan)  # generate, evaluate or train as before
    truedepth.restore(loaded.model)

    for piece in truedepth.stream(loaded, "Why is the sky blue?", draft=plan):  # the unmodified model's text, faster
        print(piece.text, end="")

`truedepth.plan` explains plans and their notation, `truedepth.engine.generation` how text is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from truedepth.errors import TruedepthError
from truedepth.plan import DepthPlan, Stage
from truedepth.records.lazy import lazy_names
from truedepth.records.version import VERSION as __version__

if TYPE_CHECKING:
    from truedepth.engine.custom_generate import speculate
    from truedepth.engine.engine import Engine
    from truedepth.engine.generation import generate, stream
    from truedepth.engine.sampling.logits_sampler import SamplingParams
    from truedepth.engine.sampling.request import Request
    from truedepth.engine.sampling.result import GenerationResult
    from truedepth.models.loading.load import LoadedModel, load
    from truedepth.models.rewire import applied_plan, apply, restore

__all__ = [
    "DepthPlan",
    "Engine",
    "GenerationResult",
    "LoadedModel",
    "Request",
    "SamplingParams",
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
    "Engine": "truedepth.engine.engine",
    "GenerationResult": "truedepth.engine.sampling.result",
    "LoadedModel": "truedepth.models.loading.load",
    "Request": "truedepth.engine.sampling.request",
    "SamplingParams": "truedepth.engine.sampling.logits_sampler",
    "applied_plan": "truedepth.models.rewire",
    "apply": "truedepth.models.rewire",
    "generate": "truedepth.engine.generation",
    "load": "truedepth.models.loading.load",
    "restore": "truedepth.models.rewire",
    "speculate": "truedepth.engine.custom_generate",
    "stream": "truedepth.engine.generation",
}

__getattr__, __dir__ = lazy_names(__name__, _LAZY)
