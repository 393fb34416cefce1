"""Several plans on one text: what they begin with alike runs once, and what is the unmodified model's not again."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence

from torch import Tensor

from truedepth.plan import DepthPlan, Form, Stage
from truedepth.records.progress import Progress

RunStage = Callable[[Stage, Form, Tensor], Tensor]
"""Runs one stage, a group in that form, on hidden states: (N, T, D) to the same."""


def key_of(plan: DepthPlan) -> str:
    """What tells plans apart whose outputs differ."""
    return f"{plan.form}: {plan.notation}" if plan.groups else plan.notation


def last_states(
    plans: Sequence[DepthPlan],
    known: Container[str],
    hidden: Sequence[Tensor],
    run: RunStage,
    progress: Progress,
    title: str,
) -> Iterator[tuple[str, Tensor]]:
    """The last hidden states, (N, T, D), of each plan that is not known yet, with its key.

    Args:
        known: keys of plans to leave out.
        hidden: of the unmodified model, the input of each layer and, last, the output of the last one: L + 1 tensors.
        progress: shown each plan, under `title`.
    """
    missing = {key_of(plan): plan for plan in plans if key_of(plan) not in known}
    if not missing:
        return
    full = DepthPlan.full(len(hidden) - 1)
    before = full
    states = list(hidden)  # what goes into each stage of the plan before, and its output
    with progress(title, len(missing)) as advance:
        # In this order, plans that begin alike follow one another.
        for key, plan in sorted(missing.items(), key=lambda item: _beginning(item[1])):
            del states[plan.common_prefix(before) + 1 :]
            known_states = hidden[: plan.common_prefix(full) + 1]
            states += known_states[len(states) :]
            for stage in plan.stages[len(states) - 1 :]:
                states.append(run(stage, plan.form, states[-1]))
            yield key, states[-1]
            before = plan
            advance()


def _beginning(plan: DepthPlan) -> list[tuple[tuple[int, ...], str]]:
    return [(stage.layers, plan.form if stage.is_group else "") for stage in plan.stages]
