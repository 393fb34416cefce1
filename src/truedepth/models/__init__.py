"""Models: loading them, running a plan on them, and how one stage computes.

`load`, `apply` and `restore` are names of `truedepth` itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from truedepth.records.lazy import lazy_names

if TYPE_CHECKING:
    from truedepth.models.loading.load import load_shapes
    from truedepth.models.rewire import mark_decoding

__all__ = ["load_shapes", "mark_decoding"]

_LAZY = {"load_shapes": "truedepth.models.loading.load", "mark_decoding": "truedepth.models.rewire"}

__getattr__, __dir__ = lazy_names(__name__, _LAZY)
