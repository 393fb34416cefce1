"""How to speculate, as a user says it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from truedepth.engine.drafts.drafts import AnyDraft
from truedepth.engine.drafts.heads.draft_head import DraftHead
from truedepth.engine.drafts.heads.eagle_head import EagleHead
from truedepth.engine.drafts.heads.exit_head import ExitHead
from truedepth.engine.drafts.heads.packaged import DEFAULT_DRAFT
from truedepth.engine.drafts.heads.vocabulary import VOCABULARY_FILES, DraftVocabulary
from truedepth.engine.drafts.policy import FixedPolicy, SpeculationPolicy
from truedepth.engine.engine import Engine
from truedepth.engine.loop.batch import MOST_DRAFTED
from truedepth.errors import UsageError
from truedepth.methods.plan_text import read_plan
from truedepth.plan import DepthPlan

DraftLike = str | DepthPlan | AnyDraft
"""A draft as `read_plan` reads it, its plan, `default` for the head that comes with the model, or a prepared one."""


@dataclass(frozen=True, kw_only=True)
class Speculation:
    """What drafts, and how much.

    Attributes:
        draft: one draft, or several to choose from at each step; None: what the trained head drafts with, and plain
            decoding where there is no head.
        num_speculative_tokens: tokens drafted each time; None: what pays, by what is seen.
        head: a trained head; None: the model's own norm and head.
        vocabulary: the tokens that may be drafted; None: all, or those of the vocabulary in the folder that is given as
            the draft.

    Raises:
        UsageError: a length that is out of range, a length for several drafts, or any of these without a draft.
    """

    draft: DraftLike | Sequence[DraftLike] | None = None
    num_speculative_tokens: int | None = None
    head: DraftHead | None = None
    vocabulary: DraftVocabulary | None = None

    def __post_init__(self) -> None:
        given = {
            "a draft length": self.num_speculative_tokens,
            "a head": self.head,
            "a draft vocabulary": self.vocabulary,
        }
        for what, value in given.items():
            if value is not None and not self._drafts:
                raise UsageError(f"{what} is given, but no draft; give a draft such as exit:8 too")
        if self.num_speculative_tokens is not None and not 1 <= self.num_speculative_tokens <= MOST_DRAFTED:
            raise UsageError(f"the draft length is {self.num_speculative_tokens}; it must be 1 to {MOST_DRAFTED}")
        if self.num_speculative_tokens is not None and len(self._drafts) > 1:
            raise UsageError("a draft length is given with several drafts; give one draft, or leave out the length")
        if self.head is not None and DEFAULT_DRAFT in self._drafts:
            raise UsageError(f"a head is given, but the draft '{DEFAULT_DRAFT}' has its own; give one of them")

    @property
    def _drafts(self) -> tuple[DraftLike | None, ...]:
        """None stands for what the head drafts with."""
        if self.draft is None:
            return (None,) if isinstance(self.head, ExitHead | EagleHead) else ()
        return (self.draft,) if isinstance(self.draft, DraftLike) else tuple(self.draft)

    def prepare(self, engine: Engine) -> tuple[tuple[AnyDraft, ...], SpeculationPolicy | None]:
        """The drafts, ready for an engine, and what paces them; None: the engine's own pacer for them.

        Raises:
            PlanError, MethodError, DraftError: a draft that cannot be read, or does not fit the model.
            UsageError: no head comes with the model, or a head and a vocabulary are given.
        """
        drafts = tuple(self._prepare(draft, engine) for draft in self._drafts)
        return drafts, None if self.num_speculative_tokens is None else FixedPolicy(self.num_speculative_tokens)

    def _prepare(self, draft: DraftLike | None, engine: Engine) -> AnyDraft:
        if isinstance(draft, AnyDraft):
            return draft
        if draft is None and isinstance(self.head, ExitHead | EagleHead):
            return engine.draft_of(self.head, self.vocabulary)
        if draft == DEFAULT_DRAFT:
            return engine.default_draft(self.vocabulary)
        plan = draft if isinstance(draft, DepthPlan) else read_plan(draft, engine.target.num_layers)
        vocabulary = self.vocabulary
        if vocabulary is None and self.head is None and isinstance(draft, str):
            vocabulary = _vocabulary_beside(draft, engine)
        return engine.draft(plan, head=self.head, vocabulary=vocabulary)


def _vocabulary_beside(draft: str, engine: Engine) -> DraftVocabulary | None:
    """The draft vocabulary that a finished search left beside its plan, if it did."""
    folder = Path(draft)
    if engine.tokenizer is None or not (folder / f"{VOCABULARY_FILES}.json").exists():
        return None
    return DraftVocabulary.load(folder, engine.model, engine.tokenizer)
