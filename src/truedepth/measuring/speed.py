"""Decode and prefill speed of one model under one or several plans, interleaved in one process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from truedepth.errors import UsageError
from truedepth.measuring.timer import MINIMUM_ROUNDS, Spread, in_turns, now, undisturbed
from truedepth.models.adapters import require_no_virtual_tokens
from truedepth.models.context import context_length
from truedepth.models.rewire import applied_plan, apply, restore
from truedepth.plan import DepthPlan
from truedepth.records.progress import Progress, silent
from truedepth.records.schema import Record


class SpeedRecord(Record):
    """Medians of interleaved runs, batch 1."""

    decode_tokens_per_second: float
    prefill_tokens_per_second: float
    time_to_first_token_seconds: float
    bytes_per_token: int = Field(description="weights and cache read to decode one token")
    bandwidth_share: float = Field(description="achieved bytes per second / measured memory bandwidth, 0 to 1")


@dataclass(frozen=True, slots=True)
class TimedRun:
    """One timed run.

    Attributes:
        prefill_seconds: from handing over the prompt to knowing the first new token.
        steps: seconds of each of the decode steps that followed, one token for every sequence.
    """

    prefill_seconds: float
    steps: tuple[float, ...]

    @property
    def step_seconds(self) -> float:
        """The mean step: what throughput is made of."""
        return fmean(self.steps)

    @property
    def median_step_seconds(self) -> float:
        """The middle step: bursts of other work and of the clock leave it alone."""
        return median(self.steps)


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast one plan ran. Tokens are counted over the whole batch."""

    decode_tokens_per_second: Spread
    prefill_tokens_per_second: Spread
    time_to_first_token_seconds: Spread

    def to_record(self, bytes_per_token: int, bandwidth: float) -> SpeedRecord:
        """The medians, and how much of the memory bandwidth they use.

        Args:
            bytes_per_token: see `work.DecodeWork.bytes_per_token`.
            bandwidth: bytes per second, see `bandwidth.read_bandwidth`.
        """
        return SpeedRecord(
            decode_tokens_per_second=self.decode_tokens_per_second.median,
            prefill_tokens_per_second=self.prefill_tokens_per_second.median,
            time_to_first_token_seconds=self.time_to_first_token_seconds.median,
            bytes_per_token=bytes_per_token,
            bandwidth_share=self.bandwidth_share(bytes_per_token, bandwidth),
        )

    def bandwidth_share(self, bytes_per_token: int, bandwidth: float) -> float:
        """Bytes that decoding read a second, over the memory bandwidth of the device."""
        return bytes_per_token * self.decode_tokens_per_second.median / bandwidth


@dataclass(frozen=True, slots=True)
class Comparison:
    """Interleaved runs of several plans; the first plan is the one that the others are compared with.

    Attributes:
        runs: the runs of each plan by round, under the caller's name for it; equally many for all.
        prompt_tokens, new_tokens: tokens a sequence; the first one, which prefill yields, is extra.
        batch: sequences run at once.
    """

    runs: Mapping[str, tuple[TimedRun, ...]]
    prompt_tokens: int
    new_tokens: int
    batch: int

    @property
    def baseline(self) -> str:
        """The name of the plan that the others are compared with."""
        return next(iter(self.runs))

    @property
    def speeds(self) -> dict[str, Speed]:
        """The speed of each plan."""
        return {name: self._speed(runs) for name, runs in self.runs.items()}

    @property
    def ratios(self) -> dict[str, Spread]:
        """Decode tokens per second over those of the baseline, pairing the runs of each round."""
        base = self.runs[self.baseline]
        return {
            name: Spread.of([a.step_seconds / b.step_seconds for a, b in zip(base, runs, strict=True)])
            for name, runs in self.runs.items()
        }

    def saved_seconds(self, name: str) -> list[float]:
        """Per round, how much shorter the median decode step of `name` was than that of the baseline."""
        pairs = zip(self.runs[self.baseline], self.runs[name], strict=True)
        return [base.median_step_seconds - own.median_step_seconds for base, own in pairs]

    def _speed(self, runs: Sequence[TimedRun]) -> Speed:
        prompt = self.batch * self.prompt_tokens
        return Speed(
            decode_tokens_per_second=Spread.of([self.batch / run.step_seconds for run in runs]),
            prefill_tokens_per_second=Spread.of([prompt / run.prefill_seconds for run in runs]),
            time_to_first_token_seconds=Spread.of([run.prefill_seconds for run in runs]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists: settings, and speed and ratio of each plan."""
        speeds, ratios = self.speeds, self.ratios
        return {
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            "batch": self.batch,
            "repeats": len(self.runs[self.baseline]),
            "baseline": self.baseline,
            "plans": {name: {**asdict(speed), "ratio": asdict(ratios[name])} for name, speed in speeds.items()},
        }


def compare(
    model: nn.Module,
    plans: Mapping[str, DepthPlan],
    *,
    prompt_tokens: int = 64,
    new_tokens: int = 32,
    batch: int = 1,
    repeats: int = 5,
    max_seconds: float | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Time greedy generation under each of `plans`, taking turns, after one run of each that does not count.

    Every run prefills the same random tokens and decodes from them through a dynamic cache by calls of the
    model: no sampling, no tokenizer. A plan that is the full model runs the unmodified model. Afterwards
    the model runs the plan that it ran before.

    Args:
        model: a `transformers` causal language model, bare or wrapped by PEFT.
        plans: by name. The first is the one that the others are compared with, usually the full model.
        prompt_tokens, new_tokens: tokens a sequence; the first one, which prefill yields, is extra.
        batch: sequences run at once.
        repeats: rounds, at least 3.
        max_seconds: start no further round after this time, but run at least 3.
        progress: shown each run, those that do not count included.

    Raises:
        UsageError: a number that is too small, or more tokens than the model has positions for.
        PlanError, UnsupportedModelError: see `truedepth.apply`.
    """
    check_sizes(model, plans, prompt_tokens, new_tokens, batch, repeats)
    prompt = fixed_prompt(model, batch, prompt_tokens)

    def run(name: str, _: int) -> TimedRun:
        run_plan(model, plans[name])
        return timed_run(model, prompt, new_tokens)

    with measuring(model):
        timed = in_turns(list(plans), run, rounds=repeats, max_seconds=max_seconds, progress=progress)
    return Comparison(timed, prompt_tokens, new_tokens, batch)


def fixed_prompt(model: nn.Module, batch: int, tokens: int) -> Tensor:
    """Random token ids from the model's vocabulary, the same at every call: (batch, tokens), int64."""
    vocabulary: int = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (batch, tokens), generator=generator)
    return ids.to(device_of(model))


def device_of(model: nn.Module) -> torch.device:
    """Where a model takes its tokens."""
    device: torch.device = model.get_input_embeddings().weight.device  # type: ignore[operator]
    return device


def run_plan(model: nn.Module, plan: DepthPlan | None) -> None:
    """Make the model run `plan`; for none and the full plan, put it back to its unmodified state."""
    if plan is None or plan.is_full:
        restore(model)
    else:
        apply(model, plan)


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, no garbage collection; afterwards as it was, plan included.

    Raises:
        UnsupportedModelError: the model is not itself in steps of decoding.
    """
    require_no_virtual_tokens(model)
    plan, training = applied_plan(model), model.training
    model.eval()
    try:
        with torch.no_grad(), undisturbed():
            yield
    finally:
        model.train(training)
        run_plan(model, plan)


def timed_run(model: nn.Module, prompt: Tensor, new_tokens: int) -> TimedRun:
    """Prefill (B, P) and decode `new_tokens` steps of (B, 1)."""
    start = now(prompt.device)
    output = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
    token = output.logits[:, -1].argmax(-1, keepdim=True)  # (B, 1)
    readings = [now(prompt.device)]
    for _ in range(new_tokens):
        output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
        token = output.logits[:, -1].argmax(-1, keepdim=True)  # (B, 1)
        readings.append(now(prompt.device))
    return TimedRun(readings[0] - start, tuple(end - begin for begin, end in pairwise(readings)))


def check_sizes(
    model: nn.Module,
    plans: Mapping[str, DepthPlan],
    prompt_tokens: int,
    new_tokens: int,
    batch: int,
    repeats: int,
) -> None:
    """Refuse what `compare` cannot measure.

    Raises:
        UsageError: see there.
    """
    if not plans:
        raise UsageError("there is no plan to time; give at least one, such as the full plan")
    numbers = {"prompt tokens": prompt_tokens, "new tokens": new_tokens, "batch": batch}
    for what, number in numbers.items():
        if number < 1:
            raise UsageError(f"{what} is {number}; it must be at least 1")
    if repeats < MINIMUM_ROUNDS:
        raise UsageError(f"repeats is {repeats}; telling speed from noise takes at least {MINIMUM_ROUNDS}")
    config: Any = model.config
    context = context_length(config)
    if context is not None and prompt_tokens + new_tokens > context:
        raise UsageError(
            f"{prompt_tokens} prompt tokens and {new_tokens} new tokens are more than the model's context "
            f"of {context}; ask for fewer tokens"
        )
