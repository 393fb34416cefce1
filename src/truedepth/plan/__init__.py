"""A plan as one value, and as a file."""

from truedepth.plan.depth_plan import FORMS, MOST_LAYERS, PREFILLS, DepthPlan, Form, Prefill, Stage

__all__ = ["FORMS", "MOST_LAYERS", "PREFILLS", "DepthPlan", "Form", "Prefill", "Stage"]
