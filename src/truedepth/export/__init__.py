"""A plan on a model as a file that other engines run: a checkpoint, or GGUF."""

from __future__ import annotations

from typing import TYPE_CHECKING

from truedepth.records.lazy import lazy_names

if TYPE_CHECKING:
    from truedepth.export.gguf.export import export_gguf
    from truedepth.export.hf.export import export_hf

__all__ = ["export_gguf", "export_hf"]

_LAZY = {"export_gguf": "truedepth.export.gguf.export", "export_hf": "truedepth.export.hf.export"}

__getattr__, __dir__ = lazy_names(__name__, _LAZY)
