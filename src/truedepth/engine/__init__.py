"""The engine: a model made ready for decoding, plainly or by drafting and verifying."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
