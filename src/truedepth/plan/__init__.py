"""A plan as one value, and as a file."""

from truedepth.plan.depth_plan import FORMS, PREFILLS, DepthPlan, Form, Prefill, Stage

__all__ = ["FORMS", "PREFILLS", "DepthPlan", "Form", "Prefill", "Stage"]
