"""Where the time of a decode step goes: each stage, the LM head, and the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from truedepth.errors import UsageError
from truedepth.families import family_of
from truedepth.measuring.speed import device_of, fixed_prompt, measuring, run_plan
from truedepth.measuring.timer import now
from truedepth.models.rewire import causal_lm
from truedepth.plan import DepthPlan


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Median seconds of the parts of a decode step.

    Attributes:
        stages: seconds of each stage, in the plan's order.
        final_norm, head: seconds of the final norm and of the LM head.
        rest: embedding, rotary embedding, masks, and the model's own loop: the step without all of the above.
        step: the whole step.
    """

    notation: tuple[str, ...]
    stages: tuple[float, ...]
    final_norm: float
    head: float
    rest: float
    step: float


def stage_times(
    model: nn.Module,
    plan: DepthPlan,
    *,
    prompt_tokens: int = 64,
    batch: int = 1,
    repeats: int = 16,
) -> StageTimes:
    """Time the parts of `repeats` decode steps, after a prefill and one step that does not count.

    The stages are timed by hooks on the decoder layers. On an accelerator each hook waits for the device,
    so the parts add up to more than a step of `speed.compare`, which lets launches overlap: read them as
    shares.

    Args:
        model: a `transformers` causal language model, bare or wrapped by PEFT.
        plan: the plan to run; the model runs its own plan again afterwards.
        prompt_tokens: tokens a sequence in the KV cache before the first step.
        batch: sequences run at once.
        repeats: steps to time, at least 1.

    Raises:
        UsageError: a number below 1.
        PlanError, UnsupportedModelError: see `truedepth.apply`.
    """
    for what, number in {"prompt tokens": prompt_tokens, "batch": batch, "repeats": repeats}.items():
        if number < 1:
            raise UsageError(f"{what} is {number}; it must be at least 1")
    prompt = fixed_prompt(model, batch, prompt_tokens)
    steps: list[StageTimes] = []
    with measuring(model):
        run_plan(model, plan)
        output = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
        with _clocks(model) as record:
            for _ in range(repeats + 1):
                token = output.logits[:, -1].argmax(-1, keepdim=True)  # (B, 1)
                record.clear()
                start = now(prompt.device)
                output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
                steps.append(_parts(plan, record, now(prompt.device) - start))
    return _medians(steps[1:])


def _parts(plan: DepthPlan, record: list[tuple[str, float]], step: float) -> StageTimes:
    """One step's parts from what its hooks recorded, in the order in which the modules ran."""
    stages = tuple(seconds for part, seconds in record if part == "layer")
    norm = sum(seconds for part, seconds in record if part == "norm")
    head = sum(seconds for part, seconds in record if part == "head")
    notation = tuple(str(stage) for stage in plan.stages)
    return StageTimes(notation, stages, norm, head, step - sum(stages) - norm - head, step)


def _medians(steps: list[StageTimes]) -> StageTimes:
    return StageTimes(
        notation=steps[0].notation,
        stages=tuple(median(times) for times in zip(*(step.stages for step in steps), strict=True)),
        final_norm=median(step.final_norm for step in steps),
        head=median(step.head for step in steps),
        rest=median(step.rest for step in steps),
        step=median(step.step for step in steps),
    )


@contextmanager
def _clocks(model: nn.Module) -> Iterator[list[tuple[str, float]]]:
    """Record `(part, seconds)` at every call of a decoder layer, the final norm and the LM head.

    A plan runs each stage through one call of one decoder layer (see `truedepth.models.rewire`).
    """
    core = causal_lm(model)
    family = family_of(core.config)
    parts = [("layer", layer) for layer in family.decoder_layers(core)]
    parts += [("norm", core.get_submodule(family.final_norm)), ("head", core.get_submodule(family.head))]
    record: list[tuple[str, float]] = []
    handles = [handle for part, module in parts for handle in _hook(module, part, record, device_of(model))]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def _hook(module: nn.Module, part: str, record: list[tuple[str, float]], device: torch.device) -> list[Any]:
    started = [0.0]

    def before(*_: Any) -> None:
        started[0] = now(device)

    def after(*_: Any) -> None:
        record.append((part, now(device) - started[0]))

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
