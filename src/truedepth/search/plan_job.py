"""The main job: find a plan, check it, compare it with the published methods, and keep all that was found."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import exp, isclose, isfinite
from pathlib import Path
from typing import Any

from truedepth.errors import MethodError, SearchError
from truedepth.evaluation.calibration import Calibration, calibrate
from truedepth.evaluation.plan_tree import key_of
from truedepth.evaluation.quality import Quality, compare_quality
from truedepth.hardware.profile_costs import ProfileCosts
from truedepth.measuring.costs import CostModel, MeasuredCosts
from truedepth.measuring.speed import SpeedRecord, compare
from truedepth.measuring.work import DecodeWork
from truedepth.methods.base import EvidenceMethod, LayerMethod
from truedepth.methods.registry import build_method
from truedepth.plan import DepthPlan
from truedepth.plan.plan_file import PLAN_FILE, save_plan
from truedepth.plan.record import PlanRecord
from truedepth.records.progress import Progress, silent
from truedepth.records.version import VERSION
from truedepth.search.job import Job, open_job
from truedepth.search.plan_results import (
    RESULTS_FILE,
    FrontierPoint,
    Peer,
    PerplexityRecord,
    Results,
    SpeedupRecord,
    TargetRecord,
)
from truedepth.search.recipe import Recipe
from truedepth.search.walk import Search, SearchStep, Target

PEERS = (
    "block-influence",
    "angular-distance",
    "greedy-removal",
    "unified-skipping",
    "early-exit",
    "layer-parallel",
)
"""The published methods that the found plan is compared with, at its own depth."""

PROMPT_TOKENS = 64
NEW_TOKENS = 32

_MISS = 0.97
"""A measured speedup below this share of the target makes the search go deeper."""

_ATTEMPTS = 3
"""How often the job searches at the most."""


def optimize(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    progress: Progress = silent,
    on_step: Callable[[SearchStep], None] = lambda step: None,
) -> Results:
    """Find the best plan for a recipe and write `plan.yaml`, `results.json` and `recipe.yaml`.

    Args:
        folder, resume: see `truedepth.search.job.open_job`.
        progress: shown each part of the work.
        on_step: called with each plan that the search takes.

    Raises:
        TruedepthError: what the recipe asks for is wrong, cannot be loaded, reached or written.
    """
    target = recipe.to_target()
    job = open_job(recipe, folder, progress, resume=resume)
    results = PlanJob(job, target, on_step).run()
    comment = f"Found by truedepth {VERSION} for {recipe.model}: {recipe.target} {recipe.value:g}"
    save_plan(results.plan.to_plan(), folder / PLAN_FILE, comment=comment)
    job.save(results, RESULTS_FILE)
    return results


@dataclass(frozen=True)
class PlanJob:
    """The search for a plan, on a loaded model."""

    job: Job[Recipe]
    target: Target
    on_step: Callable[[SearchStep], None]

    def run(self) -> Results:
        """Walk, begin again from the best plan known, and go deeper where the measured speedup misses the target."""
        target = self.target
        for _ in range(_ATTEMPTS):
            path = self._search("calibration", target).walk()
            peers = self._peers(path[-1].plan.effective_depth)
            path += self._search("validation", target).improve(self._best(path, peers), self.evidence)
            timing = self._timing(path[-1].plan)
            if target.kind != "speedup" or timing is None or timing["ratio"][0] >= _MISS * self.target.value:
                break
            target = replace(target, value=path[-1].speedup * self.target.value / timing["ratio"][0])
        return self._results(path, peers, timing)

    @cached_property
    def evidence(self) -> Calibration:
        """What the walk and the methods look at: hundreds of plans, so every second token."""
        return self._calibrate("calibration", every=2)

    def _calibrate(self, split: str, every: int) -> Calibration:
        evidence = calibrate(self.job.loaded.model, getattr(self.job.texts, split), self.job.progress, every=every)
        evidence.known = self.job.journal.of_kind(split)
        return evidence

    @cached_property
    def _costs(self) -> CostModel:
        model = self.job.loaded.model
        if self.job.recipe.hardware is not None:
            return ProfileCosts.of(model, self.job.recipe.hardware, context=PROMPT_TOKENS + NEW_TOKENS)
        measured = self.job.journal.remember(
            "costs", "measured", lambda: asdict(MeasuredCosts.measure(model, progress=self.job.progress))
        )
        return MeasuredCosts(**measured)

    def _search(self, text: str, target: Target) -> Search:
        evidence = self.evidence if text == "calibration" else self._validation
        return Search(evidence, self._costs, target, self.job.recipe.moves, self.on_step, text)

    def _peers(self, depth: int) -> dict[str, DepthPlan]:
        """The plan of each published method at a depth, where it has one."""
        plans = {}
        for name in PEERS:
            method = build_method(name, {"exit" if name == "early-exit" else "depth": depth})
            with suppress(MethodError):  # it cannot make the model this shallow
                if isinstance(method, EvidenceMethod):
                    plans[name] = method.plan(self.evidence)
                elif isinstance(method, LayerMethod):
                    plans[name] = method.plan(self.evidence.num_layers)
        return plans

    def _best(self, path: list[SearchStep], peers: dict[str, DepthPlan]) -> DepthPlan:
        """Of the walk's plans and the published methods' that meet the target, the one of least validation loss.

        Raises:
            SearchError: no plan stays within the perplexity ratio on validation text.
        """
        rivals = [replace(plan, prefill="plan") for plan in peers.values()]
        plans = [step.plan for step in path[1:]] + [plan for plan in rivals if self._is_allowed(plan)]
        base, *losses = self._validation.losses([path[0].plan, *plans])
        judged = list(zip(plans, losses, strict=True))
        if self.target.kind == "max_perplexity_ratio":
            fitting = [plan for plan, loss in judged if exp(loss - base) <= self.target.value]
            if not fitting:
                raise SearchError(
                    f"no plan keeps the perplexity within {self.target.value:g} times the model's own; the smallest "
                    f"ratio found is {exp(min(losses) - base):.3f}. Allow a larger ratio"
                )
            return max(fitting, key=self._costs.speedup)
        enough = [(plan, loss) for plan, loss in judged if isfinite(loss) and self._is_enough(plan, path[-1])]
        return min(enough, key=lambda pair: pair[1])[0]

    def _is_allowed(self, plan: DepthPlan) -> bool:
        moves = self.job.recipe.moves
        return (not plan.layers_skipped or "skip" in moves) and (not plan.groups or plan.form in moves)

    def _is_enough(self, plan: DepthPlan, found: SearchStep) -> bool:
        if self.target.kind == "depth":
            return plan.effective_depth <= self.target.value
        return self._costs.speedup(plan) >= found.speedup or isclose(self._costs.speedup(plan), found.speedup)

    @cached_property
    def _validation(self) -> Calibration:
        """What the winner is picked and improved on."""
        return self._calibrate("validation", every=1)

    def _timing(self, plan: DepthPlan) -> dict[str, Any] | None:
        """The plan against the unmodified model, interleaved; None where other hardware is planned for."""
        if self.job.recipe.hardware is not None:
            return None
        return dict(self.job.journal.remember("timing", key_of(plan), lambda: self._time(plan)))

    def _time(self, plan: DepthPlan) -> dict[str, Any]:
        model = self.job.loaded.model
        plans = {"base": DepthPlan.full(self.evidence.num_layers), "plan": plan}
        comparison = compare(
            model,
            plans,
            prompt_tokens=PROMPT_TOKENS,
            new_tokens=NEW_TOKENS,
            repeats=7,
            progress=self.job.progress,
        )
        bandwidth = self.job.bandwidth()
        work = DecodeWork.of(model, context=PROMPT_TOKENS + NEW_TOKENS)
        ratio = comparison.ratios["plan"]
        speeds = {
            name: speed.to_record(work.bytes_per_token(plans[name]), bandwidth).model_dump()
            for name, speed in comparison.speeds.items()
        }
        return {"ratio": [ratio.median, ratio.low, ratio.high], **speeds}

    def _quality(self, plans: dict[str, DepthPlan]) -> dict[str, Quality]:
        """Figures on test text, which nothing has looked at before."""
        known = self.job.journal.of_kind("test")
        keys = {name: f"{key_of(plan)}, prefill {plan.prefill}" for name, plan in plans.items()}
        missing = {keys[name]: plan for name, plan in plans.items() if keys[name] not in known}
        if missing:
            found = compare_quality(self.job.loaded.model, missing, self.job.texts.test, self.job.progress)
            for key, quality in found.items():
                known[key] = asdict(quality)
        return {name: Quality(**known[key]) for name, key in keys.items()}

    def _results(self, path: list[SearchStep], peers: dict[str, DepthPlan], timing: dict[str, Any] | None) -> Results:
        plan = path[-1].plan
        qualities = self._quality({"base": path[0].plan, "plan": plan, **peers})
        quality = qualities["plan"]
        median, low, high = timing["ratio"] if timing else (None, None, None)
        by_target = self.target.value if self.target.kind == "speedup" else None
        validation = self._validation.losses([step.plan for step in path])
        return Results(
            **self.job.facts(),
            machine=self.job.machine(),
            target=TargetRecord(kind=self.target.kind, value=self.target.value),
            plan=PlanRecord.of(plan),
            speedup=SpeedupRecord(
                target=by_target, predicted=self._costs.speedup(plan), measured=median, low=low, high=high
            ),
            perplexity=PerplexityRecord(base=qualities["base"].perplexity, plan=quality.perplexity),
            kl=quality.kl,
            agreement=quality.agreement,
            base_speed=SpeedRecord(**timing["base"]) if timing else None,
            plan_speed=SpeedRecord(**timing["plan"]) if timing else None,
            cost=self._costs.record(),
            peers=[
                self._peer(name, own, qualities[name], median if key_of(own) == key_of(plan) else None)
                for name, own in peers.items()
            ],
            frontier=[
                FrontierPoint(
                    notation=step.plan.notation,
                    form=step.plan.form,
                    speedup=step.speedup,
                    perplexity=exp(loss),
                )
                for step, loss in zip(path, validation, strict=True)
                if isfinite(loss)
            ],
            influence=self.evidence.block_influence(),
        )

    def _peer(self, name: str, plan: DepthPlan, quality: Quality, measured: float | None) -> Peer:
        """A method's plan; its speedup is measured where it comes to the plan that was timed."""
        return Peer(
            method=name,
            notation=plan.notation,
            form=plan.form,
            prefill=plan.prefill,
            speedup=self._costs.speedup(plan) if measured is None else measured,
            measured=measured is not None,
            perplexity=quality.perplexity,
            kl=quality.kl,
            agreement=quality.agreement,
        )
