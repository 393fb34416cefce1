"""What turns a draft's last hidden states into logits: the model's own norm and head, or a trained head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from truedepth.engine.cpu.packing import pack_linear
from truedepth.engine.drafts.heads.draft_files import read_kind
from truedepth.engine.drafts.heads.eagle_head import EagleHead
from truedepth.engine.drafts.heads.exit_head import ExitHead
from truedepth.engine.drafts.heads.trained_head import HEAD_FILES
from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary, end_ids_of
from truedepth.engine.runner.model_runner import ModelRunner
from truedepth.errors import UsageError
from truedepth.plan import DepthPlan


class DraftHead(Protocol):
    """Makes a draft's logits.

    Attributes:
        vocabulary: the token id of each column of the logits, (V',), int64; None: column i is token i.
        layers: decoder layers that run before `logits`, on cache entries of the draft's own.
    """

    @property
    def vocabulary(self) -> Tensor | None: ...

    @property
    def layers(self) -> Sequence[nn.Module]: ...

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, T, D) to (B, T, V')."""
        ...


class LMHead:
    """The model's own norm and LM head, or a part of its rows.

    Raises:
        DraftError: the vocabulary does not fit the model.
    """

    layers: Sequence[nn.Module] = ()

    def __init__(self, runner: ModelRunner, vocabulary: DraftVocabulary | None) -> None:
        self._runner = runner
        if vocabulary is not None:
            vocabulary.require(runner.vocabulary_size, end_ids_of(runner.model))
        self.vocabulary = None if vocabulary is None else vocabulary.ids.to(runner.device)
        self._rows = None if self.vocabulary is None else pack_linear(runner.head_rows(self.vocabulary))

    def logits(self, hidden: Tensor) -> Tensor:
        return self._runner.logits(hidden, self._rows)


def head_for(
    plan: DepthPlan, runner: ModelRunner, head: DraftHead | None, vocabulary: DraftVocabulary | None
) -> DraftHead:
    """The head of a draft, ready to draft with `plan`.

    Args:
        head: a trained head; None: the model's own.
        vocabulary: the tokens that the model's own head may draft; None: all.

    Raises:
        UsageError: both are given, or a head that drafts without a plan.
        DraftError: the one that is given does not fit the model or the plan.
    """
    if head is None:
        return LMHead(runner, vocabulary)
    refuse_both(vocabulary)
    if isinstance(head, EagleHead):
        raise UsageError(f"the head drafts by itself, and the draft '{plan}' is given too; leave out the draft")
    if isinstance(head, ExitHead):
        head.prepare(runner)
        head.require_plan(plan)
    return head


def refuse_both(vocabulary: DraftVocabulary | None) -> None:
    """Refuse a draft vocabulary beside a trained head.

    Raises:
        UsageError: there is one.
    """
    if vocabulary is not None:
        raise UsageError("a trained head has its own draft vocabulary; give a head or a vocabulary, not both")


def find_head(folder: str | Path) -> Path | None:
    """Where the files of a trained head are: in a folder itself, or in that of its training; None: no head is there."""
    own = Path(folder)
    return next((path for path in (own, own / HEAD_FILES) if (path / f"{HEAD_FILES}.json").exists()), None)


def load_head(folder: str | Path, model: nn.Module) -> ExitHead | EagleHead:
    """Read a head of either kind, in the model's type and on its device. An engine may be open on the model.

    Raises:
        DraftError: a file is missing, truncated or malformed, or it is for another model.
    """
    if read_kind(Path(folder), HEAD_FILES) == "eagle":
        return EagleHead.load(folder, model)
    return ExitHead.load(folder, model)
