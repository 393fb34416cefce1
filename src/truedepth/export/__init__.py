"""A plan on a model as a file that other engines run: a checkpoint, or GGUF."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
