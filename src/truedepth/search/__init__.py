"""Both jobs of `optimize`: the plan that loses least, and the draft that gains most."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
