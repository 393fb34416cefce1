"""An exit head: what a trained draft has in place of the model's own norm and LM head, after its last stage."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, Self

from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from truedepth.engine.cpu.packing import copy_norm
from truedepth.engine.drafts.heads.fingerprint import Fingerprint
from truedepth.engine.drafts.heads.trained_head import HeadCard, TrainedHead, check_layers, draft_ids
from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary
from truedepth.errors import DraftError, PlanError, UsageError
from truedepth.models.rewire import causal_lm
from truedepth.plan import DepthPlan, Form


class ExitHeadCard(HeadCard):
    """The fields of the `head.json` of an exit head."""

    kind: Literal["exit"] = "exit"
    exit: str = Field(description="the draft plan that it was trained for, in the notation of plans")
    form: Form = Field(description="how groups of that plan run")
    input_norm: bool = Field(description="whether a norm stands before its layers")


class ExitHead(TrainedHead):
    """Decoder layers of its own (or none), a norm, and a projection, after the stages of a draft plan.

    Make one with `fresh` or `load`.

    Attributes:
        exit: the draft plan that it was trained for.
    """

    card_schema = ExitHeadCard

    def __init__(
        self, core: PreTrainedModel, fingerprint: Fingerprint, exit_plan: DepthPlan, *, input_norm: bool, **sizes: Any
    ) -> None:
        """An exit head without weights, on the meta device; see `fresh` and `load`."""
        super().__init__(core, fingerprint, **sizes)
        self.exit = exit_plan
        self.input_norm = copy_norm(self.norm) if input_norm else None
        if self.input_norm is not None:
            self.extra_layers[0].register_forward_pre_hook(partial(_normalise, self.input_norm))

    def require_plan(self, plan: DepthPlan) -> None:
        """Refuse to draft with another plan than the head's.

        Raises:
            DraftError: with both plans.
        """
        if plan.stages != self.exit.stages or (plan.groups and plan.form != self.exit.form):
            form = f" in form {self.exit.form}" if self.exit.groups else ""
            raise DraftError(
                f"the exit head was trained for the draft '{self.exit}'{form}, not for '{plan}'; "
                "draft with its plan, or train a head for this one"
            )

    @classmethod
    def fresh(
        cls,
        model: nn.Module,
        exit_plan: DepthPlan,
        *,
        num_layers: int = 1,
        vocabulary: DraftVocabulary | None = None,
        rank: int | None = 0,
        input_norm: bool = False,
    ) -> Self:
        """A head to be trained, which starts as a copy of the model's last layers, final norm and LM head.

        Args:
            model: a causal language model of a supported family, bare or wrapped by PEFT; no engine is open on it.
            exit_plan: the draft plan after which the head comes.
            num_layers: decoder layers of its own.
            vocabulary: the tokens that it can draft; None: all.
            rank: of the change to the model's own rows of the LM head; None: rows of its own instead.
            input_norm: put a norm before its layers; hidden states in the middle of a model are of another size than
                those that its last layers know.

        Raises:
            PlanError: the plan is for another number of layers.
            DraftError: the vocabulary does not fit the model.
            UsageError: a number of layers that cannot be, or an input norm without layers.
            UnsupportedModelError: the model's weights are packed, quantized, or have adapters on them.
        """
        core: PreTrainedModel = causal_lm(model)
        fingerprint = Fingerprint.of(core)
        _check(exit_plan, fingerprint, num_layers, input_norm)
        ids = draft_ids(core, vocabulary, fingerprint)
        sizes = {"num_layers": num_layers, "draft_size": len(ids), "rank": rank}
        made = cls(core, fingerprint, exit_plan, input_norm=input_norm, **sizes)
        return made._start(core, ids, {} if made.input_norm is None else {"input_norm": made.input_norm})

    @classmethod
    def _of_card(cls, core: PreTrainedModel, card: ExitHeadCard, fingerprint: Fingerprint, **sizes: Any) -> Self:
        exit_plan = DepthPlan.parse(card.exit, card.num_layers, card.form)
        _check(exit_plan, fingerprint, card.extra_layers, card.input_norm)
        return cls(core, fingerprint, exit_plan, input_norm=card.input_norm, **sizes)

    def _card(self, **common: Any) -> ExitHeadCard:
        return ExitHeadCard(
            exit=self.exit.notation, form=self.exit.form, input_norm=self.input_norm is not None, **common
        )


def _check(exit_plan: DepthPlan, fingerprint: Fingerprint, num_layers: int, input_norm: bool) -> None:
    """Refuse a head that cannot be made."""
    count = fingerprint.num_layers
    if exit_plan.num_layers != count:
        raise PlanError(
            f"the exit '{exit_plan}' is for {exit_plan.num_layers} layers, but the model has {count}; "
            "make a plan for this model"
        )
    check_layers(num_layers, 0, fingerprint)
    if input_norm and num_layers == 0:
        raise UsageError("an input norm stands before the head's own layers, and it has none; give it one")


def _normalise(norm: nn.Module, layer: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Put a norm before a decoder layer, as a hook."""
    return norm(given[0]), *given[1:]
