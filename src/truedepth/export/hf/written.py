"""What an export to a checkpoint has written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from truedepth.export.hf.self_check import SelfCheck


@dataclass(frozen=True)
class HfExport:
    """A checkpoint that was written.

    Attributes:
        path: its folder.
        architecture: the class that loads it.
        stages: its layers: the plan's effective depth.
        nbytes: of its weights.
        check: how far its logits are from the plan's on the source; None where all tensors are copies of the source's.
    """

    path: Path
    architecture: str
    stages: int
    nbytes: int
    check: SelfCheck | None
