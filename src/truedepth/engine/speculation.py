"""What a user says of speculation, read in one place for the command line and the library alike."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType

from truedepth.engine.drafts.drafts import AnyDraft
from truedepth.engine.drafts.heads.draft_head import find_head, load_head
from truedepth.engine.drafts.heads.eagle_head import EagleHead
from truedepth.engine.drafts.heads.exit_head import ExitHead
from truedepth.engine.drafts.heads.packaged import DEFAULT_DRAFT
from truedepth.engine.drafts.heads.vocabulary import VOCABULARY_FILES, DraftVocabulary
from truedepth.engine.drafts.policy import FixedPolicy, SpeculationPolicy
from truedepth.engine.engine import Engine
from truedepth.engine.loop.batch import MOST_DRAFTED
from truedepth.errors import UsageError
from truedepth.methods.plan_text import PLAN_FORMATS, read_plan
from truedepth.plan import DepthPlan
from truedepth.records.given import require_type

DraftLike = str | Path | DepthPlan | ExitHead | EagleHead | AnyDraft
"""A draft as a user writes it (`DRAFT_FORMATS`), its plan, a trained head, or one that an engine has prepared."""

DRAFT_FORMATS = (
    f"{PLAN_FORMATS}; the folder of a trained head or of its training; or '{DEFAULT_DRAFT}' for the head that comes "
    "with the model"
)
"""What may be written for a draft, for help texts and messages."""


@dataclass(frozen=True, kw_only=True)
class Speculation:
    """What drafts, and how much.

    Attributes:
        draft: one draft, or several to choose from at each step; None: plain decoding. Of the folder of a finished run
            everything is used: its plan and draft vocabulary, or its head.
        num_speculative_tokens: tokens drafted each time; None: what pays, by what is seen.
        vocabulary: the tokens that a plan's draft may propose, or the folder of a draft vocabulary; None: all, or those
            of the vocabulary beside the plan.

    Raises:
        UsageError: a draft of a wrong type, a length that is out of range, a length for several drafts, or a length or
            a vocabulary without a draft.
    """

    draft: DraftLike | Sequence[DraftLike] | None = None
    num_speculative_tokens: int | None = None
    vocabulary: DraftVocabulary | str | Path | None = None

    def __post_init__(self) -> None:
        for draft in self._drafts:
            if not isinstance(draft, DraftLike):
                raise UsageError(f"{draft!r} is no draft; give {DRAFT_FORMATS}; a DepthPlan, or a trained head")
        require_type("num_speculative_tokens", self.num_speculative_tokens, (int, NoneType), "a whole number, or None")
        known = (DraftVocabulary, str, Path, NoneType)
        require_type("vocabulary", self.vocabulary, known, "a draft vocabulary, its folder, or None")
        given = {"a draft length": self.num_speculative_tokens, "a draft vocabulary": self.vocabulary}
        for what, value in given.items():
            if value is not None and not self._drafts:
                raise UsageError(f"{what} is given, but no draft; give a draft such as exit:8 too")
        if self.num_speculative_tokens is None:
            return
        if not 1 <= self.num_speculative_tokens <= MOST_DRAFTED:
            raise UsageError(f"the draft length is {self.num_speculative_tokens}; it must be 1 to {MOST_DRAFTED}")
        if len(self._drafts) > 1:
            raise UsageError("a draft length is given with several drafts; give one draft, or leave out the length")

    @property
    def _drafts(self) -> tuple[DraftLike, ...]:
        if self.draft is None:
            return ()
        several = isinstance(self.draft, Sequence) and not isinstance(self.draft, str)
        return tuple(self.draft) if several else (self.draft,)  # type: ignore[arg-type,return-value]

    def prepare(self, engine: Engine) -> tuple[tuple[AnyDraft, ...], SpeculationPolicy | None]:
        """The drafts, ready for an engine, and the policy; None: the engine's own, which adapts to what it sees.

        Files are read once while the engine is open.

        Raises:
            PlanError, MethodError, DraftError: a draft that cannot be read, or does not fit the model.
            UsageError: no head comes with the model, or a vocabulary is given beside a head, which has its own.
        """
        drafts = tuple(self._prepare(draft, engine) for draft in self._drafts)
        return drafts, None if self.num_speculative_tokens is None else FixedPolicy(self.num_speculative_tokens)

    def _prepare(self, draft: DraftLike, engine: Engine) -> AnyDraft:
        if isinstance(draft, AnyDraft):
            return draft
        return engine.once((draft, self.vocabulary), lambda: self._read(draft, engine))

    def _read(self, draft: str | Path | DepthPlan | ExitHead | EagleHead, engine: Engine) -> AnyDraft:
        vocabulary = self._vocabulary(engine)
        if isinstance(draft, ExitHead | EagleHead):
            return engine.draft_of(draft, vocabulary)
        if isinstance(draft, DepthPlan):
            return engine.draft(draft, vocabulary=vocabulary)
        text = os.fspath(draft)
        if text == DEFAULT_DRAFT:
            return engine.default_draft(vocabulary)
        if folder := find_head(text):
            return engine.draft_of(load_head(folder, engine.model), vocabulary)
        plan = read_plan(text, engine.target.num_layers)
        if vocabulary is None and (Path(text) / f"{VOCABULARY_FILES}.json").exists():
            vocabulary = self._load_vocabulary(text, engine)
        return engine.draft(plan, vocabulary=vocabulary)

    def _vocabulary(self, engine: Engine) -> DraftVocabulary | None:
        if self.vocabulary is None or isinstance(self.vocabulary, DraftVocabulary):
            return self.vocabulary
        return self._load_vocabulary(self.vocabulary, engine)

    @staticmethod
    def _load_vocabulary(folder: str | Path, engine: Engine) -> DraftVocabulary:
        if engine.tokenizer is None:
            raise UsageError(
                "a draft vocabulary is known by its tokens, and the engine has no tokenizer; "
                "open an engine with it, truedepth.Engine(model, tokenizer)"
            )
        return DraftVocabulary.load(folder, engine.model, engine.tokenizer)
