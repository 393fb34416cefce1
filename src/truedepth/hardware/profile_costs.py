"""The search's `CostModel` for hardware that is described by a profile instead of being here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING

from truedepth.hardware.formula import outside_parts, pass_parts, stage_parts
from truedepth.hardware.profile import Hardware, load_hardware
from truedepth.measuring.costs import CostModel, CostRecord
from truedepth.plan import FORMS, DepthPlan, Form, Stage

if TYPE_CHECKING:
    from torch import nn

    from truedepth.measuring.work import DecodeWork


@dataclass(frozen=True)
class ProfileCosts(CostModel):
    """Costs of a model's decode steps by the formula of `truedepth.hardware.formula`.

    Attributes:
        hardware: the machine, at the values of its figures.
        work: the model's decode step, counted with the profile's `bytes_per_value`.
    """

    hardware: Hardware
    work: DecodeWork

    @classmethod
    def of(cls, model: nn.Module, hardware: str, *, context: int, batch: int = 1) -> ProfileCosts:
        """The costs of a model on the hardware that `load_hardware` finds.

        Args:
            model, context, batch: see `DecodeWork.of`.

        Raises:
            UsageError: see `load_hardware` and `DecodeWork.of`.
            UnsupportedModelError: the model's family is unknown.
        """
        from truedepth.measuring.work import DecodeWork

        found = load_hardware(hardware)
        width = found.profile.bytes_per_value
        return cls(found, DecodeWork.of(model, context=context, batch=batch, bytes_per_value=width))

    def decode_seconds(self, plan: DepthPlan) -> float:
        """See `CostModel`."""
        return pass_parts(self.work, plan, self.hardware.machine).seconds

    def worth(self, form: Form) -> bool:
        """See `CostModel`. A profile has no noise: any gain counts."""
        if len(self.work.layers) < 2:
            return False
        pair, two = self._pair_seconds(form), 2 * self._layer_seconds()
        return pair < two and not math.isclose(pair, two)

    def record(self) -> CostRecord:
        """See `CostModel`. Layers and pairs of neighbours are averaged over the model."""
        pairs = {form: self._pair_seconds(form) for form in FORMS} if len(self.work.layers) > 1 else {}
        shares = [f"{form} {seconds / self._layer_seconds() / 2:.0%}" for form, seconds in pairs.items()]
        found = ", ".join(shares) or "the model has none"
        return CostRecord(
            source=self.hardware.name,
            fixed_seconds=outside_parts(self.work, self.hardware.machine).seconds,
            layer_seconds=self._layer_seconds(),
            pair_seconds=pairs,
            note=f"By the profile, pairs take this share of the time of two layers: {found}.",
        )

    def _layer_seconds(self) -> float:
        return self._mean_seconds(1, "lp")

    def _pair_seconds(self, form: Form) -> float:
        return self._mean_seconds(2, form)

    def _mean_seconds(self, width: int, form: Form) -> float:
        """Stages of `width` neighbours, averaged over the model."""
        stages = [Stage(tuple(range(at, at + width))) for at in range(len(self.work.layers) - width + 1)]
        machine = self.hardware.machine
        return mean(stage_parts(self.work, stage, form, machine).seconds for stage in stages)
