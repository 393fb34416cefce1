"""Plans that begin alike run what they share once, and nothing that is known of the unmodified model."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from truedepth.evaluation.plan_tree import key_of, last_states
from truedepth.plan import FORMS, DepthPlan, Form, Stage
from truedepth.records.progress import silent
from truedepth.search.moves import neighbours

FULL = DepthPlan.full(5)
SHORTER = [near for move in ("skip", *FORMS) for near in neighbours(FULL, move)]
PLANS = [FULL, *SHORTER, *(near for plan in SHORTER for near in neighbours(plan, "skip"))]


def way(plan: DepthPlan) -> tuple[str, ...]:
    """What runs under a plan, in order."""
    return tuple(name(stage, plan.form) for stage in plan.stages)


def name(stage: Stage, form: Form) -> str:
    return f"{form}: {stage}" if stage.is_group else str(stage)


@given(st.lists(st.sampled_from(PLANS), max_size=12))
def test_states_are_those_of_each_plan_alone_and_beginnings_run_once(plans: list[DepthPlan]) -> None:
    ran = []

    def run(stage: Stage, form: Form, before: Any) -> Any:
        ran.append((*before, name(stage, form)))
        return ran[-1]

    known: Any = [way(FULL)[:depth] for depth in range(6)]  # hidden states say what they have been through
    found = dict(last_states(plans, {"0-3"}, known, run, silent, "Judging plans"))
    assert found == {key_of(plan): way(plan) for plan in plans if key_of(plan) != "0-3"}
    assert len(ran) == len(set(ran))
    assert not set(ran) & set(known)
