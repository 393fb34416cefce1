"""What the methods that remove layers share: how many to remove, and which score least."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from truedepth.errors import MethodError, TruedepthError
from truedepth.plan import DepthPlan


def count_removed(method: str, parameter: str, kept: int, num_layers: int) -> int:
    """How many of `num_layers` layers go when `kept` remain.

    Raises:
        MethodError: more layers are to remain than there are.
    """
    if kept > num_layers:
        raise MethodError(
            f"method '{method}': {parameter} is {kept}, but the model has {num_layers} layers; choose 1 to {num_layers}"
        )
    return num_layers - kept


def least(scores: Sequence[float], count: int, what: str) -> tuple[int, ...]:
    """The indices of the `count` lowest scores, lowest first; of equal scores the last index first.

    Deeper layers matter less as a rule (arXiv 2403.17887), hence the order of equals. A score that is not a
    finite number ranks last: half precision can overflow once a layer is gone.

    Raises:
        TruedepthError: fewer than `count` scores are finite.
    """
    finite = [index for index, score in enumerate(scores) if math.isfinite(score)]
    if len(finite) < count:
        raise TruedepthError(
            f"the {what} is a finite number for {len(finite)} of {len(scores)} choices, and {count} are "
            "needed; load the model with dtype float32"
        )
    return tuple(sorted(finite, key=lambda index: (scores[index], -index))[:count])


def without(removed: Collection[int], num_layers: int) -> DepthPlan:
    """The plan that runs every layer except those in `removed`."""
    return DepthPlan.of_layers((layer for layer in range(num_layers) if layer not in removed), num_layers)
