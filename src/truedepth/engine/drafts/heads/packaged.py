"""Heads that come in packages of their own, found by entry points: `truedepth-heads`, and those of others.

A package names a head's folder, as `Head.save` wrote it, by what the model is called:

    [project.entry-points."truedepth.heads"]
    "smollm2-135m" = "truedepth_heads:SMOLLM2_135M"
"""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

from truedepth.errors import UsageError

DEFAULT_DRAFT = "default"
"""What a user writes for the draft of the head that comes with the model."""

ENTRY_POINT_GROUP = "truedepth.heads"


def packaged_heads() -> list[str]:
    """The models that an installed package has a head for."""
    return sorted({point.name for point in entry_points(group=ENTRY_POINT_GROUP)})


def packaged_head(model: str) -> Path:
    """The folder of a model's head. Only the package that has it is imported.

    Args:
        model: what the model was called when it was loaded.

    Raises:
        UsageError: no installed package has one, or several have.
    """
    found = list(entry_points(group=ENTRY_POINT_GROUP, name=model))
    if len(found) == 1:
        return Path(found[0].load())
    if found:
        raise UsageError(
            f"several packages have a head for the model '{model}': {', '.join(point.value for point in found)}; "
            "uninstall all but one"
        )
    known = packaged_heads()
    others = f" (there are heads for {', '.join(known)})" if known else ""
    raise UsageError(
        f"no head for the model '{model}' is installed, so it has no draft '{DEFAULT_DRAFT}'{others}; "
        "give a draft such as exit:8, or a head that was trained for it. The one for smollm2-135m is in "
        "truedepth-heads: in a clone of truedepth, pip install ./packages/truedepth-heads"
    )
