"""What turns a draft's last hidden states into logits: the model's own norm and head, or a trained exit head.

An exit head is a file of its own, beside the model that it was trained for: `head.safetensors` and `head.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from truedepth.decoding.draft_files import Card, read_draft_files, write_draft_files
from truedepth.decoding.fingerprint import Fingerprint
from truedepth.decoding.packing import copy_norm, is_hollow, pack_linear
from truedepth.decoding.trunk import Trunk
from truedepth.decoding.vocabulary import DraftVocabulary, end_ids_of
from truedepth.errors import DraftError, PlanError, UnsupportedModelError, UsageError
from truedepth.families import family_of
from truedepth.models.rewire import causal_lm, layer_class
from truedepth.models.wording import listed
from truedepth.plan import DepthPlan, Form

HEAD_FILES = "head"
"""The name of both files, without their endings."""

_EMBEDDING, _NORMS = "fingerprint.embedding", "fingerprint.norms"
"""Names of the tensors by which a head's model is known."""


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


class OwnHead:
    """The model's own norm and LM head, or a part of its rows.

    Raises:
        DraftError: the vocabulary does not fit the model.
    """

    layers: Sequence[nn.Module] = ()

    def __init__(self, trunk: Trunk, vocabulary: DraftVocabulary | None) -> None:
        self._trunk = trunk
        if vocabulary is not None:
            vocabulary.require(trunk.vocabulary_size, end_ids_of(trunk.model))
        self.vocabulary = None if vocabulary is None else vocabulary.ids.to(trunk.device)
        self._rows = None if self.vocabulary is None else pack_linear(trunk.head_rows(self.vocabulary))

    def logits(self, hidden: Tensor) -> Tensor:
        if self._rows is None:
            return self._trunk.logits(hidden)
        return self._trunk.logits_of(self._rows, hidden)


class HeadCard(Card):
    """The fields of `head.json`."""

    model: str = Field(description="what the model was called that it was trained for")
    num_layers: int = Field(ge=1, description="decoder layers of that model")
    hidden_size: int = Field(ge=1, description="of that model")
    exit: str = Field(description="the draft plan that it was trained for, in the notation of plans")
    form: Form = Field(description="how groups of that plan run")
    extra_layers: int = Field(ge=0, description="decoder layers of its own")
    input_norm: bool = Field(description="whether a norm stands before these")
    draft_vocabulary_size: int = Field(ge=1, description="tokens that it can draft")
    text: str = Field(description="the text that it was trained on")
    agreement: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        description="share of the model's tokens that it drafts right, at the first drafted place, the second, ..."
    )


class ExitHead(nn.Module):
    """Decoder layers of its own (or none), a norm, and a projection onto a draft vocabulary.

    Make one with `fresh` or `load`. It is trained like any module. In a draft, its weights are packed as the model's
    are, and put back when the engine closes: before that, it cannot be saved or trained.

    Attributes:
        exit: the draft plan that it was trained for.
        model_name: what the model was called.
        text: the text that it was trained on, in words.
        agreement: share of the model's tokens that it drafts right, by drafted place, 0 to 1.
    """

    ids: Tensor

    def __init__(
        self,
        model: nn.Module,
        exit_plan: DepthPlan,
        fingerprint: Fingerprint,
        *,
        num_layers: int,
        draft_size: int,
        input_norm: bool,
    ) -> None:
        """An exit head without weights, on the meta device; see `fresh` and `load`."""
        super().__init__()
        core: PreTrainedModel = causal_lm(model)
        family = family_of(core.config)
        own = family.decoder_layers(core)
        head: Any = core.get_submodule(family.head)
        kind: Any = layer_class(own[-1])
        self.exit, self.model_name = exit_plan, str(core.name_or_path)
        self.text: str = ""
        self.agreement: tuple[float, ...] = ()
        self._fingerprint = fingerprint
        self._cap: float | None = getattr(core.config, "final_logit_softcapping", None)
        with torch.device("meta"):
            self.register_buffer("ids", torch.empty(draft_size, dtype=torch.int64))
            # Of the last layer's attention type, as `Trunk.adopt` takes them.
            self.extra_layers = nn.ModuleList(kind(core.config, len(own) - 1) for _ in range(num_layers))
            self.projection = nn.Linear(fingerprint.hidden_size, draft_size, bias=head.bias is not None)
        self.norm = copy_norm(core.get_submodule(family.final_norm))
        self.input_norm = copy_norm(self.norm) if input_norm else None
        if self.input_norm is not None:
            self.extra_layers[0].register_forward_pre_hook(partial(_normalise, self.input_norm))
        self.eval()

    @property
    def vocabulary(self) -> Tensor:
        return self.ids

    @property
    def layers(self) -> Sequence[nn.Module]:
        return list(self.extra_layers)

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, T, D) to (B, T, V')."""
        logits: Tensor = self.projection(self.norm(hidden))
        return logits if self._cap is None else self._cap * torch.tanh(logits / self._cap)

    def prepare(self, plan: DepthPlan, trunk: Trunk) -> None:
        """Make ready to draft with `plan`.

        Raises:
            DraftError: the head was trained for another model or plan.
        """
        if difference := self._fingerprint.difference(Fingerprint.of(trunk.model)):
            raise _other_model(self.model_name, difference)
        if plan.stages != self.exit.stages or (plan.groups and plan.form != self.exit.form):
            form = f" in form {self.exit.form}" if self.exit.groups else ""
            raise DraftError(
                f"the exit head was trained for the draft '{self.exit}'{form}, not for '{plan}'; "
                "draft with its plan, or train a head for this one"
            )
        trunk.pack([self.projection])

    @classmethod
    def fresh(
        cls,
        model: nn.Module,
        exit_plan: DepthPlan,
        *,
        num_layers: int = 1,
        vocabulary: DraftVocabulary | None = None,
        input_norm: bool = False,
    ) -> Self:
        """A head to be trained, which starts as a copy of the model's last layers, final norm and LM head.

        Args:
            model: a causal language model of a supported family, bare or wrapped by PEFT; no engine is open on it.
            exit_plan: the draft plan after which the head comes.
            num_layers: decoder layers of its own.
            vocabulary: the tokens that it can draft; None: all.
            input_norm: put a norm before its layers; hidden states in the middle of a model are of another size than
                those that its last layers know.

        Raises:
            PlanError: the plan is for another number of layers.
            DraftError: the vocabulary does not fit the model.
            UsageError: a number of layers that cannot be, or an input norm without layers.
            UnsupportedModelError: the model's weights are packed, quantized, or have adapters on them.
        """
        core: PreTrainedModel = causal_lm(model)
        family, fingerprint = family_of(core.config), Fingerprint.of(core)
        _check_request(exit_plan, fingerprint, num_layers, input_norm)
        vocabulary = DraftVocabulary(torch.arange(fingerprint.vocabulary_size)) if vocabulary is None else vocabulary
        vocabulary.require(fingerprint.vocabulary_size, end_ids_of(core))
        head: Any = core.get_submodule(family.head)
        if is_hollow(head.weight):
            raise UnsupportedModelError("the model is packed for decoding; close its Engine before making a head")
        made = cls(
            core,
            exit_plan,
            fingerprint,
            num_layers=num_layers,
            draft_size=len(vocabulary.ids),
            input_norm=input_norm,
        )
        state = made._state_of(core, vocabulary.ids)
        made._take({name: value.detach().clone() for name, value in state.items()}, core)
        return made

    def save(self, folder: str | Path) -> None:
        """Write `head.safetensors` and `head.json`, as `load` reads them.

        Raises:
            DraftError: the head is packed for decoding, or holds numbers that are not finite.
            OutputError: the files cannot be written.
        """
        if is_hollow(self.projection.weight):
            raise DraftError("the exit head is packed for decoding; close its Engine before saving it")
        state: dict[str, Tensor] = self.state_dict()
        _require_finite(state, "the exit head")
        card = HeadCard(
            vocabulary_size=self._fingerprint.vocabulary_size,
            model=self.model_name,
            num_layers=self._fingerprint.num_layers,
            hidden_size=self._fingerprint.hidden_size,
            exit=self.exit.notation,
            form=self.exit.form,
            extra_layers=len(self.extra_layers),
            input_norm=self.input_norm is not None,
            draft_vocabulary_size=len(self.ids),
            text=self.text,
            agreement=list(self.agreement),
        )
        sample = {_EMBEDDING: self._fingerprint.embedding, _NORMS: self._fingerprint.norms}
        write_draft_files(Path(folder), HEAD_FILES, card, state | sample)

    @classmethod
    def load(cls, folder: str | Path, model: nn.Module) -> Self:
        """Read what `save` wrote, in the model's type and on its device. An engine may be open on the model.

        Raises:
            DraftError: a file is missing, truncated or malformed, or it is for another model.
        """
        path = Path(folder) / f"{HEAD_FILES}.safetensors"
        card, tensors = read_draft_files(Path(folder), HEAD_FILES, HeadCard)
        core: PreTrainedModel = causal_lm(model)
        try:
            return cls._of_files(card, tensors, core)
        except (DraftError, UsageError) as error:
            raise DraftError(f"{path}: {error}") from None

    @classmethod
    def _of_files(cls, card: HeadCard, tensors: dict[str, Tensor], core: PreTrainedModel) -> Self:
        missing = [name for name in ("ids", _EMBEDDING, _NORMS) if name not in tensors]
        if missing:
            raise DraftError(f"it lacks {listed(missing)}; make it again")
        fingerprint = Fingerprint(
            num_layers=card.num_layers,
            hidden_size=card.hidden_size,
            vocabulary_size=card.vocabulary_size,
            embedding=tensors.pop(_EMBEDDING).float(),
            norms=tensors.pop(_NORMS).float(),
        )
        if difference := fingerprint.difference(Fingerprint.of(core)):
            raise _other_model(card.model, difference)
        DraftVocabulary(tensors["ids"]).require(card.vocabulary_size, end_ids_of(core))
        exit_plan = DepthPlan.parse(card.exit, card.num_layers, card.form)
        _check_request(exit_plan, fingerprint, card.extra_layers, card.input_norm)
        made = cls(
            core,
            exit_plan,
            fingerprint,
            num_layers=card.extra_layers,
            draft_size=card.draft_vocabulary_size,
            input_norm=card.input_norm,
        )
        made.model_name, made.text, made.agreement = card.model, card.text, tuple(card.agreement)
        _require_alike(tensors, made.state_dict())
        _require_finite(tensors, "it")
        made._take(tensors, core)
        return made

    def _state_of(self, core: PreTrainedModel, ids: Tensor) -> dict[str, Tensor]:
        """The weights to start from, shared with the model: its last layers, final norm and LM head."""
        head: Any = core.get_submodule(family_of(core.config).head)
        ids = ids.to(head.weight.device)
        state = {"ids": ids, "projection.weight": head.weight[ids]}
        if head.bias is not None:
            state["projection.bias"] = head.bias[ids]
        sources = {f"extra_layers.{index}": layer for index, layer in enumerate(_last(core, len(self.extra_layers)))}
        for name, module in (*sources.items(), ("norm", self.norm), ("input_norm", self.input_norm)):
            if module is not None:
                state |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
        if set(state) != set(self.state_dict()):
            raise UnsupportedModelError(
                "the model's layers hold other tensors than plain ones of their kind, such as adapters or quantized "
                "weights; merge adapters with merge_and_unload(), or load the model without quantization"
            )
        return state

    def _take(self, state: Mapping[str, Tensor], core: PreTrainedModel) -> None:
        """Take weights as they are, in the type and on the device of the model."""
        placed = {
            name: value.to(core.device, core.dtype) if value.is_floating_point() else value.to(core.device)
            for name, value in state.items()
        }
        self.load_state_dict(placed, assign=True)


def head_for(plan: DepthPlan, trunk: Trunk, head: DraftHead | None, vocabulary: DraftVocabulary | None) -> DraftHead:
    """The head of a draft, ready to draft with `plan`.

    Args:
        head: a trained head; None: the model's own.
        vocabulary: the tokens that the model's own head may draft; None: all.

    Raises:
        UsageError: both are given.
        DraftError: the one that is given does not fit the model or the plan.
    """
    if head is None:
        return OwnHead(trunk, vocabulary)
    if vocabulary is not None:
        raise UsageError("an exit head has its own draft vocabulary; give a head or a vocabulary, not both")
    if isinstance(head, ExitHead):
        head.prepare(plan, trunk)
    return head


def _check_request(exit_plan: DepthPlan, fingerprint: Fingerprint, num_layers: int, input_norm: bool) -> None:
    """Refuse a head that cannot be made."""
    count = fingerprint.num_layers
    if exit_plan.num_layers != count:
        raise PlanError(
            f"the exit '{exit_plan}' is for {exit_plan.num_layers} layers, but the model has {count}; "
            "make a plan for this model"
        )
    if not 0 <= num_layers <= count:
        raise UsageError(f"the head has {num_layers} layers of its own; it can have 0 to {count}, as many as the model")
    if input_norm and num_layers == 0:
        raise UsageError("an input norm stands before the head's own layers, and it has none; give it one")


def _last(core: PreTrainedModel, count: int) -> list[nn.Module]:
    """The last `count` decoder layers that are made like the very last one; that one again where there are fewer."""
    layers = family_of(core.config).decoder_layers(core)
    shapes = [{name: value.shape for name, value in layer.state_dict().items()} for layer in layers]
    alike = [layer for layer, own in zip(layers, shapes, strict=True) if own == shapes[-1]]
    return [layers[-1]] * max(0, count - len(alike)) + alike[max(0, len(alike) - count) :]


def _normalise(norm: nn.Module, layer: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Put a norm before a decoder layer, as a hook."""
    return norm(given[0]), *given[1:]


def _other_model(name: str, difference: str) -> DraftError:
    return DraftError(
        f"the exit head is for another model, {name or 'which has no name'}: {difference}; "
        "use the model that it was trained for, or train a head for this one"
    )


def _require_alike(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not just those expected, by name, shape and type."""
    if missing := sorted(set(expected) - set(tensors)):
        raise DraftError(f"it lacks {len(missing)} of the head's tensors: {listed(missing)}; make it again")
    if extra := sorted(set(tensors) - set(expected)):
        raise DraftError(
            f"it holds {len(extra)} tensors that the head has no place for: {listed(extra)}; make it again"
        )
    for name, tensor in sorted(tensors.items()):
        if tensor.shape != expected[name].shape or tensor.is_floating_point() != expected[name].is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise DraftError(
                f"its tensor '{name}' is {kind} of shape {tuple(tensor.shape)}, and the head's has the shape "
                f"{tuple(expected[name].shape)}; make it again"
            )


def _require_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    wrong = sorted(name for name, tensor in tensors.items() if not bool(tensor.isfinite().all()))
    if wrong:
        raise DraftError(f"{what} holds numbers that are not finite, in {listed(wrong)}; train the head again")
