"""truedepth makes a pre-trained language model effectively shallower, and says what that costs.

    import truedepth

    loaded = truedepth.load("smollm2-135m")
    plan = truedepth.DepthPlan.parse("0-19 (20|21) (22|23) 24-29", num_layers=30)
    truedepth.apply(loaded.model, plan)  # generate, evaluate or train as before
    truedepth.restore(loaded.model)

    for piece in truedepth.stream(loaded, "Why is the sky blue?", draft=plan):  # the unmodified model's text, faster
        print(piece.text, end="")

`truedepth.plan` explains plans and their notation, `truedepth.engine.generation` how text is made. The public names
stand in `__init__.pyi`; each is loaded on its first use, since torch and transformers take seconds.
"""

import lazy_loader

from truedepth.records.version import VERSION as __version__  # noqa: F401

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
