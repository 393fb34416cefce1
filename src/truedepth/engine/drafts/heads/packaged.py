"""Heads that come with truedepth, for embedded models."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from truedepth.engine.drafts.heads.trained_head import HEAD_FILES
from truedepth.errors import UsageError

DEFAULT_DRAFT = "default"
"""What a user writes for the draft of the head that comes with the model."""

_HEADS = Path(str(files("truedepth"))) / "data" / "heads"


def packaged_heads() -> list[str]:
    """The models that a head comes with, by the names of embedded models."""
    return sorted(card.parent.name for card in _HEADS.glob(f"*/{HEAD_FILES}.json"))


def packaged_head(model: str) -> Path:
    """The folder of the head that comes with a model.

    Args:
        model: what the model was called when it was loaded.

    Raises:
        UsageError: no head comes with it.
    """
    known = packaged_heads()
    if model in known:
        return _HEADS / model
    others = f" (one comes with {', '.join(known)})" if known else ""
    raise UsageError(
        f"no head comes with the model '{model}', so it has no draft '{DEFAULT_DRAFT}'{others}; "
        "give a draft such as exit:8, or a head that was trained for it"
    )
