"""Measuring what a plan costs here: speed, bytes read, memory bandwidth, and the parts of a step."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
