"""Shapley values of layers: the layers that contribute least over many coalitions are removed."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from truedepth.errors import MethodError, TruedepthError
from truedepth.methods.base import Evidence, EvidenceMethod
from truedepth.methods.selection import count_removed, least, without
from truedepth.plan import DepthPlan


@dataclass(frozen=True, slots=True)
class ShapleyValues:
    """Estimated Shapley values, in nats a token: what the loss grows by, on average, when the layer goes.

    Attributes:
        mean: one value a layer, the mean over the sampled permutations.
        standard_error: one value a layer, the standard error of that mean.
        samples: how many permutations were sampled.
    """

    mean: tuple[float, ...]
    standard_error: tuple[float, ...]
    samples: int


class Shapley(EvidenceMethod):
    """Shapley values of layers, "A deeper look at depth pruning of LLMs", arXiv 2407.16286.

    Layers N = {0, ..., L - 1} are players, and a coalition S is worth v(S) = -loss(S). The value of layer l
    is what it adds to a coalition, averaged over all orders in which layers can leave:

        phi_l = 1/L sum_{k=0}^{L-1} E_{R in N\\{l}, |R|=k} [ loss(N \\ R \\ {l}) - loss(N \\ R) ]

    The L - depth layers of least value are removed; of equal layers the deeper goes first.

    The sum is restricted to k < `removals`, since coalitions much smaller than the plan say nothing about it
    and the empty one is not a model. With removals = 1 each layer is judged by leaving it out alone, the
    approximation in the paper's released code. The expectation is sampled: a random permutation of all layers
    is cut into runs of `removals` layers, and the layers of each run leave the full model one after the
    other. So each permutation gives each layer one value, from `samples` permutations come a mean and its
    standard error (`values`), and the cost is bounded by samples x L + 1 losses. Where `removals` does not
    divide L, the last run is shorter and large coalitions weigh a little more.

    Limits: layers whose values differ by less than their standard errors are ordered by chance.
    """

    name: ClassVar[str] = "shapley"
    summary: ClassVar[str] = "remove the layers of least sampled Shapley value"
    source: ClassVar[str] = "arXiv 2407.16286"

    depth: int = Field(ge=1, description="how many layers remain")
    samples: int = Field(default=8, ge=2, description="how many random permutations of the layers are averaged")
    removals: int | None = Field(
        default=None,
        ge=1,
        description="at most how many layers are missing from a coalition (k < removals); default L - depth",
    )
    seed: int = Field(default=0, ge=0, description="seed of the random permutations")

    def plan(self, evidence: Evidence) -> DepthPlan:
        count = count_removed(self.name, "depth", self.depth, evidence.num_layers)
        removed = least(self.values(evidence).mean, count, "Shapley value") if count else ()
        return without(removed, evidence.num_layers)

    def values(self, evidence: Evidence) -> ShapleyValues:
        """The estimated values that `plan` ranks layers by, with their standard errors.

        Raises:
            MethodError: the parameters do not fit the number of layers.
            TruedepthError: a loss is not a finite number.
        """
        runs = self._runs(evidence.num_layers)
        missing = dict.fromkeys(frozenset(run[:end]) for run in runs for end in range(len(run) + 1))
        losses = dict(zip(missing, _finite_losses(missing, evidence), strict=True))
        observed: list[list[float]] = [[] for _ in range(evidence.num_layers)]
        for run in runs:
            for end, layer in enumerate(run, start=1):
                observed[layer].append(losses[frozenset(run[:end])] - losses[frozenset(run[: end - 1])])
        return ShapleyValues(
            mean=tuple(map(statistics.fmean, observed)),
            standard_error=tuple(statistics.stdev(values) / math.sqrt(self.samples) for values in observed),
            samples=self.samples,
        )

    def _runs(self, num_layers: int) -> list[list[int]]:
        """The layers that leave the full model one after the other, in each run of each permutation."""
        length = self._run_length(num_layers)
        generator = random.Random(self.seed)
        orders = [generator.sample(range(num_layers), num_layers) for _ in range(self.samples)]
        return [order[at : at + length] for order in orders for at in range(0, num_layers, length)]

    def _run_length(self, num_layers: int) -> int:
        removed = count_removed(self.name, "depth", self.depth, num_layers)
        run = max(removed, 1) if self.removals is None else self.removals
        if run >= num_layers:
            raise MethodError(
                f"method '{self.name}': removals is {run}, but a model with {num_layers} layers can spare no "
                f"more than {num_layers - 1}; choose 1 to {num_layers - 1}"
            )
        return run


def _finite_losses(missing: Iterable[frozenset[int]], evidence: Evidence) -> Sequence[float]:
    plans = [without(layers, evidence.num_layers) for layers in missing]
    losses = evidence.losses(plans)
    for plan, loss in zip(plans, losses, strict=True):
        if not math.isfinite(loss):
            raise TruedepthError(f"the calibration loss of plan '{plan}' is {loss}; load the model with dtype float32")
    return losses
