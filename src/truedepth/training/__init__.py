"""Training for depth: what makes exits usable, and what brings back the quality that a plan costs.

One folder for each kind of training; what all kinds share stands beside them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
