"""What a decode step under a plan costs: what the search asks, and answers measured on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Protocol

from pydantic import Field

from truedepth.errors import SearchError
from truedepth.measuring.pairs import PairSaving, paired, pairs_pay, stage_seconds
from truedepth.plan import FORMS, DepthPlan, Form
from truedepth.records.progress import Progress, silent
from truedepth.records.schema import Record

if TYPE_CHECKING:
    from torch import nn

    from truedepth.measuring.speed import Comparison


class CostRecord(Record):
    """What the search believed a decode step costs."""

    source: str = Field(description="'measured' or the name of a hardware profile")
    fixed_seconds: float = Field(description="embedding, final norm, LM head, and everything outside the stages")
    layer_seconds: float
    pair_seconds: dict[Form, float] = Field(description="two layers side by side, per form")
    note: str = Field(description="one sentence: whether parallel stages bring time here")


FULL, SKIP = "full", "skip"
"""Names of the two probes that are not groups; a probe of groups is named by its form."""


class CostModel(Protocol):
    """What the search asks about time. A plan that only skips while decoding costs what it costs then."""

    def decode_seconds(self, plan: DepthPlan) -> float:
        """Seconds of one decode step under `plan`."""
        ...

    def speedup(self, plan: DepthPlan) -> float:
        """Decode seconds of the full model over those of `plan`."""
        return self.decode_seconds(DepthPlan.full(plan.num_layers)) / self.decode_seconds(plan)

    def worth(self, form: Form) -> bool:
        """Whether two layers side by side in `form` take less time than one after the other, noise aside."""
        ...

    def record(self) -> CostRecord:
        """The costs in plain numbers."""
        ...


@dataclass(frozen=True)
class MeasuredCosts(CostModel):
    """Costs fitted to interleaved runs on this machine, as a sum over stages.

    Attributes:
        fixed_seconds: what a step takes besides its stages.
        layer_seconds: one layer on its own, or a merged stage.
        pair_seconds: two layers side by side, by form; exactly twice `layer_seconds` where no difference
            from that stood out of the noise.
        note: one sentence, whether layers side by side save time.
    """

    fixed_seconds: float
    layer_seconds: float
    pair_seconds: Mapping[Form, float]
    note: str

    def decode_seconds(self, plan: DepthPlan) -> float:
        """See `CostModel`.

        Raises:
            UsageError: the plan has groups of a form that was not measured.
        """
        stages = (stage_seconds(stage, plan.form, self.layer_seconds, self.pair_seconds) for stage in plan.stages)
        return self.fixed_seconds + sum(stages)

    def worth(self, form: Form) -> bool:
        """See `CostModel`."""
        return pairs_pay(form, self.layer_seconds, self.pair_seconds)

    def record(self) -> CostRecord:
        """See `CostModel`."""
        return CostRecord(source="measured", **asdict(self))

    @classmethod
    def measure(
        cls,
        model: nn.Module,
        *,
        prompt_tokens: int = 16,
        new_tokens: int = 16,
        repeats: int = 9,
        max_seconds: float | None = 25.0,
        progress: Progress = silent,
    ) -> MeasuredCosts:
        """Time the probes of `probe_plans`, interleaved, and fit the costs to them.

        The arguments are those of `truedepth.measuring.speed.compare`. Several short runs serve better than a
        few long ones, since what counts is the difference within a round.

        Raises:
            SearchError: skipping a third of the layers did not save time, so the timings are all noise.
            UsageError, UnsupportedModelError: see `truedepth.measuring.speed.compare`.
        """
        from truedepth.measuring.speed import compare

        probes = probe_plans(model)
        comparison = compare(
            model,
            probes,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            repeats=repeats,
            max_seconds=max_seconds,
            progress=progress,
        )
        return cls.fit(comparison, probes)

    @classmethod
    def fit(cls, comparison: Comparison, probes: Mapping[str, DepthPlan]) -> MeasuredCosts:
        """Fit the costs to interleaved runs of `probes`.

        With s layers skipped and p pairs: layer = (full - skip) / s, fixed = full - L * layer and
        pair = 2 * layer - (full - paired) / p. Each difference is the median over rounds of what the median
        decode steps of a round differ by, so that it is of runs that the machine disturbed alike.

        A pair's saving (or loss) that is not larger than its noise, the interquartile range over rounds,
        counts as none. A layer costs at most 1/L of the step, and a pair at least as much as a layer.

        Args:
            comparison: runs of `probes`; its baseline is the full model.
            probes: as `probe_plans` makes them.

        Raises:
            SearchError: skipping layers did not save time.
        """
        full_seconds = median(run.median_step_seconds for run in comparison.runs[FULL])
        depth, skipped = probes[FULL].num_layers, len(probes[SKIP].layers_skipped)
        saved = median(comparison.saved_seconds(SKIP)) / skipped
        if saved <= 0:
            raise SearchError(
                f"a decode step of {full_seconds * 1e3:.2f} ms did not become shorter when {skipped} of "
                f"{depth} layers were skipped: something else keeps the machine busy; end it and try again"
            )
        layer = min(saved, full_seconds / depth)
        pairs: dict[Form, float] = {}
        findings = []
        for form in FORMS:
            rounds = [seconds / len(probes[form].groups) for seconds in comparison.saved_seconds(form)]
            saving = PairSaving.of(rounds)
            pairs[form] = saving.pair_seconds(layer)
            findings.append(_finding(form, layer, saving))
        return cls(full_seconds - depth * layer, layer, pairs, _note(findings))


def probe_plans(model: nn.Module) -> dict[str, DepthPlan]:
    """The plans whose times tell the costs apart.

    The full model, the middle third of the layers skipped, and for each form all layers in pairs.

    Raises:
        SearchError: the model has a single layer.
        UnsupportedModelError: the family is unknown.
    """
    from truedepth.families import family_of
    from truedepth.models.rewire import causal_lm

    core = causal_lm(model)
    depth = len(family_of(core.config).decoder_layers(core))
    if depth < 2:
        raise SearchError("the model has a single layer; there is nothing to skip or to put side by side")
    skipped = max(1, depth // 3)
    first = (depth - skipped + 1) // 2
    kept = [layer for layer in range(depth) if not first <= layer < first + skipped]
    probes = {FULL: DepthPlan.full(depth), SKIP: DepthPlan.of_layers(kept, depth)}
    for form in FORMS:
        probes[form] = paired(depth, form)
    return probes


def _finding(form: Form, layer: float, saving: PairSaving) -> str:
    seconds, noise = abs(saving.seconds), saving.noise
    figures = f"{seconds * 1e3:.3f} ms of {2 * layer * 1e3:.3f} ms (noise {noise * 1e3:.3f} ms)"
    if not saving.stands_out:
        return f"a pair in form {form} takes no measurable time less than two layers: {figures}"
    return f"a pair in form {form} {'saves' if saving.seconds > 0 else 'loses'} {figures}"


def _note(findings: Sequence[str]) -> str:
    text = "; ".join(findings)
    return f"{text[0].upper()}{text[1:]}."
