"""What a user writes for a plan, read in one place for the command line and the library alike.

0-19 (20|21) 22-29          the notation of `truedepth.plan`
plan.yaml, run              a plan file, or the folder of a finished run
exit:8                      the first 8 layers
unified-skipping@1.5        METHOD@VALUE: a published method for which one value is enough
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from truedepth.errors import MethodError, PlanError
from truedepth.plan import DepthPlan, Form, Prefill

PLAN_FORMATS = "a plan.yaml, a finished run's folder, a notation such as '0-19 (20|21) 22-29', exit:8, or METHOD@VALUE"
"""What `read_plan` takes, for help texts and messages."""

PlanLike = str | Path | DepthPlan
"""A plan, or what a user writes for one."""

_NOTATION = re.compile(r"[\d\s()|+-]*")
_MISSPELT_NOTATION = re.compile(r"[\d(][^/\\]*(?<!\.yaml)(?<!\.yml)")
_EXIT = re.compile(r"exit:(.*)")
_METHOD = re.compile(r"([A-Za-z][\w-]*)@([^/\\]*)")


def read_plan(
    given: PlanLike | None, num_layers: int, form: Form | None = None, prefill: Prefill | None = None
) -> DepthPlan:
    """The plan that a user means for a model of `num_layers` layers.

    Args:
        given: a plan, or what is written for one: see this module's docstring; None: every layer.
        form, prefill: override what a plan file or a method says.

    Raises:
        PlanError: it cannot be read, is malformed, or is for another number of layers.
        MethodError: there is no such method, or its value does not fit it or the model.
    """
    if given is None:
        return DepthPlan.full(num_layers)
    if isinstance(given, DepthPlan):
        return replace(given, form=form or given.form, prefill=prefill or given.prefill)
    if not isinstance(given, PlanLike):
        raise PlanError(f"{given!r} is no plan; give {PLAN_FORMATS}, or a DepthPlan")
    text = os.fspath(given)
    if names_a_file(text):
        plan = _from_file(text, num_layers)
    elif match := _EXIT.fullmatch(text):
        plan = _by_method(text, "early-exit", match[1], num_layers)
    elif match := _METHOD.fullmatch(text):
        plan = _by_method(text, match[1], match[2], num_layers)
    else:
        return DepthPlan.parse(text, num_layers, form or "lp", prefill or "plan")
    return replace(plan, form=form or plan.form, prefill=prefill or plan.prefill)


def names_a_file(text: str) -> bool:
    """Whether `text` is the path of a plan file or a run, there or not, and says itself for how many layers it is."""
    if _EXIT.fullmatch(text) or _NOTATION.fullmatch(text):
        return False
    return os.path.exists(text) or not (_METHOD.fullmatch(text) or _MISSPELT_NOTATION.fullmatch(text))


def _from_file(text: str, num_layers: int) -> DepthPlan:
    if not os.path.exists(text):
        raise PlanError(f"there is no plan file or run '{text}'; give {PLAN_FORMATS}")
    from truedepth.plan.plan_file import load_plan

    plan = load_plan(text)
    if plan.num_layers != num_layers:
        raise PlanError(
            f"the plan in {text} is for {plan.num_layers} layers, but the model has {num_layers}; "
            "use the model that it was made for, or make another plan"
        )
    return plan


def _by_method(text: str, name: str, value: str, num_layers: int) -> DepthPlan:
    from truedepth.methods.base import LayerMethod
    from truedepth.methods.registry import get_method

    try:
        method = get_method(name)
        if not issubclass(method, LayerMethod):
            raise MethodError(
                f"method '{name}' looks at how a model treats calibration text; "
                f"run 'truedepth plan {name} --model MODEL -o plan.yaml' first, and give that plan.yaml"
            )
        if method.shorthand is None:
            raise MethodError(
                f"method '{name}' needs more than one value; run 'truedepth plan {name} --layers {num_layers} "
                "-o plan.yaml' with its parameters first, and give that plan.yaml"
            )
        return method(**{method.shorthand: value}).plan(num_layers)
    except MethodError as error:
        raise MethodError(f"plan '{text}': {error}") from None
