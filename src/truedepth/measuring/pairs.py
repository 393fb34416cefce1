"""What layers side by side cost, judged by pairs: the first two layers of a group tell what each further one adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from truedepth.errors import UsageError
from truedepth.plan import DepthPlan, Form, Stage


def paired(num_layers: int, form: Form) -> DepthPlan:
    """The plan of all layers in pairs; the last one alone where their number is odd."""
    pairs = [Stage((layer, layer + 1)) for layer in range(0, num_layers - 1, 2)]
    last = [Stage((num_layers - 1,))] if num_layers % 2 else []
    return DepthPlan((*pairs, *last), num_layers, form)


@dataclass(frozen=True, slots=True)
class PairSaving:
    """What a pair takes less than two layers one after the other.

    Attributes:
        seconds: the median over rounds; negative where a pair takes longer.
        noise: the interquartile range over rounds. A saving that is not larger counts as none.
    """

    seconds: float
    noise: float

    @classmethod
    def of(cls, savings: Sequence[float]) -> PairSaving:
        """From the seconds that each round saved by a pair."""
        lower, _, upper = quantiles(savings, n=4)
        return cls(median(savings), upper - lower)

    @property
    def stands_out(self) -> bool:
        return abs(self.seconds) > self.noise

    def pair_seconds(self, layer_seconds: float) -> float:
        """What a pair takes: at least as much as a layer."""
        return max(2 * layer_seconds - self.seconds, layer_seconds) if self.stands_out else 2 * layer_seconds


def stage_seconds(stage: Stage, form: Form, layer_seconds: float, pair_seconds: Mapping[Form, float]) -> float:
    """What a stage takes: layer + (n - 1) * (pair - layer) for a group of n layers.

    Args:
        layer_seconds: one layer on its own, or a merged stage.
        pair_seconds: two layers side by side, by form.

    Raises:
        UsageError: a group in a form that was not measured.
    """
    if not stage.is_group:
        return layer_seconds
    if form not in pair_seconds:
        raise UsageError(f"the cost of groups in form '{form}' was not measured; use another form")
    return layer_seconds + (len(stage.layers) - 1) * (pair_seconds[form] - layer_seconds)


def pairs_pay(form: Form, layer_seconds: float, pair_seconds: Mapping[Form, float]) -> bool:
    """Whether two layers side by side take less time than one after the other, noise aside."""
    return form in pair_seconds and pair_seconds[form] < 2 * layer_seconds
