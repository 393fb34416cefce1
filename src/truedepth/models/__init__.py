"""Models: loading them, running a plan on them, and how one stage computes.

`load`, `apply` and `restore` are names of `truedepth` itself.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
