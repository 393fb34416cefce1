"""A plan as JSON has it."""

from __future__ import annotations

from pydantic import Field

from truedepth.plan.depth_plan import DepthPlan, Form, Prefill
from truedepth.records.schema import Record


class PlanRecord(Record):
    """A plan as `truedepth plan --json` prints it."""

    notation: str
    num_layers: int
    stages: list[list[int]]
    effective_depth: int
    layers_used: list[int]
    form: Form
    prefill: Prefill
    all_reduces: int = Field(description="all-reduces of one forward under tensor parallelism")

    @classmethod
    def of(cls, plan: DepthPlan) -> PlanRecord:
        return cls.model_validate(plan.to_dict())

    def to_plan(self) -> DepthPlan:
        return DepthPlan.parse(self.notation, self.num_layers, self.form, self.prefill)
