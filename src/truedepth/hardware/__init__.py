"""Other machines: profiles of figures with sources, and what plans would cost there."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
