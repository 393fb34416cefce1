"""Drafts held against the target: a plan, of which the two share a part, or a head that reads the target's states."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from truedepth.engine.drafts.heads.draft_head import DraftHead, head_for
from truedepth.engine.drafts.heads.eagle_head import EagleHead
from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary
from truedepth.engine.runner.model_runner import ModelRunner
from truedepth.errors import PlanError
from truedepth.plan import DepthPlan, Form, Stage


@dataclass(frozen=True, eq=False)
class Draft:
    """How tokens are drafted by a plan, and verified.

    The *shared prefix* runs once a token: its hidden states and cache entries serve drafting and verification alike
    (LayerSkip, arXiv 2404.16710, section 4.3). Of the layers that both run later, the draft reads the target's
    entries of the tokens verified, and writes those of its own tokens where verification overwrites them.

    Attributes:
        plan: the draft plan.
        shared: the leading stages that draft and target have in common.
        alone: the stages that the draft runs after them, the head's own layers included.
        rest: the stages that verification runs after them.
        kept: layers of which the draft keeps entries of its own, because the target has none.
        head: makes the draft's logits.
    """

    plan: DepthPlan
    shared: tuple[Stage, ...]
    alone: tuple[Stage, ...]
    rest: tuple[Stage, ...]
    kept: frozenset[int]
    head: DraftHead

    @property
    def form(self) -> Form:
        return self.plan.form

    def to_dict(self) -> dict[str, Any]:
        """Its plan and the size of its vocabulary, as plain numbers, strings, lists and dicts."""
        return {"plan": self.plan.to_dict(), "vocabulary_size": _size_of(self.head)}

    @classmethod
    def of(
        cls,
        plan: DepthPlan,
        target: DepthPlan,
        runner: ModelRunner,
        *,
        head: DraftHead | None = None,
        vocabulary: DraftVocabulary | None = None,
    ) -> Draft:
        """Prepare a draft for a target.

        Args:
            head: a trained exit head; None: the model's own norm and head.
            vocabulary: the tokens that the model's own head may draft; None: all. A trained head has its own.

        Raises:
            PlanError: the draft is for another number of layers, or merges layers.
            DraftError: the head or the vocabulary does not fit the model or the plan.
            UsageError: both a head and a vocabulary are given.
        """
        if plan.num_layers != target.num_layers:
            raise PlanError(
                f"the draft '{plan}' is for {plan.num_layers} layers, but the model has {target.num_layers}; "
                "draft with a plan for this model"
            )
        if any(stage.merged and stage not in target.stages for stage in plan.stages):
            raise PlanError(
                f"the draft '{plan}' merges layers, whose mean would replace the target's own weights; "
                "draft with a plan that skips layers or runs them side by side"
            )
        head = head_for(plan, runner, head, vocabulary)
        head_stages = runner.adopt(head.layers)
        common = plan.common_prefix(target)
        alone = plan.stages[common:] + head_stages
        kept = _with_entries(alone) - _with_entries(target.stages)
        return cls(plan, plan.stages[:common], alone, target.stages[common:], kept, head)


@dataclass(frozen=True, eq=False)
class EagleDraft:
    """How tokens are drafted by a head that reads the target's states of the tokens verified.

    Drafting runs nothing of the target, and verification runs all of it.

    Attributes:
        head: the EAGLE head.
        stages: its decoder layers, on entries of the draft's own.
    """

    head: EagleHead
    stages: tuple[Stage, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as of a `Draft`; it runs no plan."""
        return {"plan": None, "vocabulary_size": _size_of(self.head)}

    @classmethod
    def of(cls, head: EagleHead, target: DepthPlan, runner: ModelRunner) -> EagleDraft:
        """Prepare a draft for a target.

        Raises:
            DraftError: the head does not fit the model or the target.
        """
        head.prepare(runner)
        head.require_target(target)
        return cls(head, runner.adopt(head.layers))


AnyDraft = Draft | EagleDraft
"""What can propose tokens."""


def _size_of(head: DraftHead) -> int | None:
    """Of the draft vocabulary; None: it is the model's."""
    return None if head.vocabulary is None else len(head.vocabulary)


def _with_entries(stages: Iterable[Stage]) -> frozenset[int]:
    """The layers that have cache entries."""
    return frozenset(layer for stage in stages for layer in stage.layers_run)
