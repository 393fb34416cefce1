"""Speed and quality of plans on a model that ranks share, and how often the ranks communicate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from truedepth.measuring.machine import device_name, processor_name
from truedepth.measuring.speed import Comparison, TimedRun, check_sizes, fixed_prompt, timed_run
from truedepth.measuring.timer import in_turns
from truedepth.parallel.load import SplitModels
from truedepth.parallel.ranks import GroupRanks, Ranks, Traffic
from truedepth.plan import DepthPlan
from truedepth.records.progress import Progress, silent


@dataclass(frozen=True)
class RanksMeasurement:
    """What a model's plans cost on several ranks.

    Attributes:
        plans: by name; the first one is the one that the others are compared with.
        comparison: their interleaved runs, timed on this rank; no rank is ahead of the others by more than a pass.
        prompt_traffic, token_traffic: counted while a prompt was read, and while one token was decoded.
    """

    plans: Mapping[str, DepthPlan]
    comparison: Comparison
    prompt_traffic: Mapping[str, Traffic]
    token_traffic: Mapping[str, Traffic]
    ranks: int
    backend: str
    device: str
    threads: int

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        report = self.comparison.to_dict()
        for name, figures in report["plans"].items():
            figures["plan"] = self.plans[name].to_dict()
            figures["prompt"] = asdict(self.prompt_traffic[name])
            figures["token"] = asdict(self.token_traffic[name])
        machine = {"processor": processor_name(), "device": self.device, "threads": self.threads}
        return {"ranks": self.ranks, "backend": self.backend, "machine": machine, **report}


@torch.inference_mode()
def measure_on_ranks(
    models: SplitModels,
    ranks: GroupRanks,
    *,
    prompt_tokens: int = 64,
    new_tokens: int = 32,
    batch: int = 1,
    repeats: int = 5,
    progress: Progress = silent,
) -> RanksMeasurement:
    """Time the plans of split models against each other; all ranks call this together.

    The arguments and the runs are those of `truedepth.measuring.speed.compare`; all ranks start each run together.

    Raises:
        UsageError: see there.
        RankError: another rank has stopped.
    """
    first = next(iter(models.models.values()))
    check_sizes(first, models.plans, prompt_tokens, new_tokens, batch, repeats)
    prompt = fixed_prompt(first, batch, prompt_tokens)
    traffic = {name: count_passes(model, prompt, ranks) for name, model in models.models.items()}

    def run(name: str, _: int) -> TimedRun:
        ranks.wait()
        return timed_run(models.models[name], prompt, new_tokens)

    timed = in_turns(list(models.models), run, rounds=repeats, progress=progress)
    return RanksMeasurement(
        plans=models.plans,
        comparison=Comparison(timed, prompt_tokens, new_tokens, batch),
        prompt_traffic={name: prompt for name, (prompt, _) in traffic.items()},
        token_traffic={name: token for name, (_, token) in traffic.items()},
        ranks=ranks.size,
        backend=ranks.backend,
        device=device_name(ranks.device),
        threads=torch.get_num_threads(),
    )


def count_passes(model: Any, prompt: Tensor, ranks: Ranks) -> tuple[Traffic, Traffic]:
    """What the ranks tell each other while a prompt, (B, P), is read, and while one token is decoded."""
    start = ranks.traffic.copy()
    output = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
    read = ranks.traffic.copy()
    model(input_ids=prompt[:, :1], past_key_values=output.past_key_values, use_cache=True)
    return read.since(start), ranks.traffic.since(read)
