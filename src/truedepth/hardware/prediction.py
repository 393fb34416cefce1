"""What plans take on hardware that a profile describes: prefill and decode, with ranges, and where the time goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from truedepth.hardware.formula import Machine, Parts, Range, all_reduces, pass_parts
from truedepth.hardware.profile import Hardware
from truedepth.plan import DepthPlan

if TYPE_CHECKING:
    from torch import nn

UNMODIFIED = "unmodified"


@dataclass(frozen=True, slots=True)
class PassPrediction:
    """One pass of a plan, a prompt or a decode step: by the formula, as far as the profile's ranges allow.

    Attributes:
        seconds: of the pass.
        tokens_per_second: over the whole batch.
        parts: where the seconds go.
        all_reduces: of the pass; none on a single device.
        speedup: over the unmodified model's pass, both with the same figures.
    """

    seconds: Range
    tokens_per_second: Range
    parts: Parts
    all_reduces: int
    speedup: Range


@dataclass(frozen=True, slots=True)
class PlanPrediction:
    """A plan, its prompt pass and its decode step."""

    plan: DepthPlan
    prefill: PassPrediction
    decode: PassPrediction


@dataclass(frozen=True)
class Prediction:
    """Plans of one model on one machine.

    Attributes:
        hardware: the machine.
        plans: by name; the first one is `UNMODIFIED`.
        batch: sequences at once.
        context: tokens of each sequence in the KV cache at the decode step.
        prompt_tokens: tokens of each prompt.
    """

    hardware: Hardware
    plans: Mapping[str, PlanPrediction]
    batch: int
    context: int
    prompt_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        profile = self.hardware.profile
        return {
            "hardware": {
                "name": self.hardware.name,
                "description": profile.description,
                "devices": self.hardware.devices,
                "stack": self.hardware.stack,
                "stack_description": profile.stacks[self.hardware.stack].description,
                "bytes_per_value": profile.bytes_per_value,
            },
            "batch": self.batch,
            "context": self.context,
            "prompt_tokens": self.prompt_tokens,
            "plans": {
                name: {"plan": own.plan.to_dict(), "prefill": asdict(own.prefill), "decode": asdict(own.decode)}
                for name, own in self.plans.items()
            },
        }


def predict(
    model: nn.Module,
    hardware: Hardware,
    plans: Mapping[str, DepthPlan],
    *,
    batch: int = 1,
    context: int | None = None,
    prompt_tokens: int = 64,
) -> Prediction:
    """Predict the speed of a model under `plans`, against the unmodified model.

    Args:
        model: a causal language model of a supported family; on the meta device too, since only shapes count.
        hardware: see `truedepth.hardware.profile.load_hardware`.
        plans: by name, besides the unmodified model.
        batch: sequences at once.
        context: tokens of each sequence in the KV cache at the decode step; None: those of the prompt.
        prompt_tokens: tokens of each prompt.

    Raises:
        UsageError: batch, context or prompt tokens below 1.
        UnsupportedModelError: the model's family is unknown.
    """
    from truedepth.measuring.work import DecodeWork, PrefillWork

    reach = prompt_tokens if context is None else context
    width = hardware.profile.bytes_per_value
    prefill = PrefillWork.of(model, prompt_tokens=prompt_tokens, batch=batch, bytes_per_value=width)
    decode = DecodeWork.of(model, context=reach, batch=batch, bytes_per_value=width)
    full = DepthPlan.full(len(decode.layers))

    def passes(plan: DepthPlan) -> PlanPrediction:
        of_prompt = full if plan.prefill == "full" else plan
        return PlanPrediction(
            plan,
            prefill=_pass(hardware, lambda own, at: pass_parts(prefill, own, at), of_prompt, batch * prompt_tokens),
            decode=_pass(hardware, lambda own, at: pass_parts(decode, own, at), plan, batch),
        )

    named = {UNMODIFIED: full, **plans}
    return Prediction(hardware, {name: passes(plan) for name, plan in named.items()}, batch, reach, prompt_tokens)


def _pass(
    hardware: Hardware, parts: Callable[[DepthPlan, Machine], Parts], plan: DepthPlan, tokens: int
) -> PassPrediction:
    """A plan's pass at the profile's values, and its range over their corners.

    The corners of a ratio need not enclose its value where another term bounds a stage at some of them.
    """
    full, machine, corners = DepthPlan.full(plan.num_layers), hardware.machine, hardware.corners
    own, base = parts(plan, machine), parts(full, machine)
    seconds = [parts(plan, corner).seconds for corner in corners]
    bases = [parts(full, corner).seconds for corner in corners]
    return PassPrediction(
        seconds=Range.of(own.seconds, seconds),
        tokens_per_second=Range.of(tokens / own.seconds, [tokens / found for found in seconds]),
        parts=own,
        all_reduces=all_reduces(plan, machine),
        speedup=Range.of(base.seconds / own.seconds, [a / b for a, b in zip(bases, seconds, strict=True)]),
    )
