"""What trained heads have in common: decoder layers of their own, a norm, a projection, and their files.

A head is kept beside the model that it was trained for: `head.safetensors` and `head.json`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from truedepth.engine.cpu.freed import is_freed
from truedepth.engine.cpu.packing import copy_norm
from truedepth.engine.drafts.heads.draft_files import Card, read_draft_files, write_draft_files
from truedepth.engine.drafts.heads.fingerprint import Fingerprint
from truedepth.engine.drafts.heads.projection import SharedRows, fresh_change, head_rows
from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary, end_ids_of
from truedepth.engine.runner.model_runner import ModelRunner
from truedepth.errors import DraftError, UnsupportedModelError, UsageError
from truedepth.families import family_of
from truedepth.models.rewire import causal_lm, layer_class
from truedepth.records.messages import listed

HEAD_FILES = "head"
"""The name of both files, without their endings."""

_EMBEDDING, _NORMS = "fingerprint.embedding", "fingerprint.norms"
"""Names of the tensors by which a head's model is known."""


class HeadCard(Card):
    """The fields that `head.json` has for every kind of head."""

    kind: str = Field(description="exit or eagle")
    model: str = Field(description="what the model was called that it was trained for")
    num_layers: int = Field(ge=1, description="decoder layers of that model")
    hidden_size: int = Field(ge=1, description="of that model")
    extra_layers: int = Field(ge=0, description="decoder layers of its own")
    draft_vocabulary_size: int = Field(ge=1, description="tokens that it can draft")
    projection_rank: int | None = Field(
        ge=0, description="of the change to the model's own rows of the LM head; null: it has rows of its own instead"
    )
    text: str = Field(description="the text that it was trained on")
    agreement: dict[str, list[Annotated[float, Field(ge=0, le=1)]]] = Field(
        description="by held-out text: the share of the model's tokens that it drafts right at the first drafted "
        "position; at the second, where the first was right; and so on"
    )


class TrainedHead(nn.Module, ABC):
    """Decoder layers, a norm, and a projection onto a draft vocabulary.

    It is trained like any module. In a draft, its weights are packed as the model's are, and put back when the engine
    closes: before that, it cannot be saved or trained.

    Attributes:
        ids: the token id of each column of its logits, (V',), int64.
        model_name: what the model was called.
        text: the text that it was trained on, in words.
        agreement: by held-out text and drafted position, 0 to 1; see `HeadCard`.
    """

    ids: Tensor
    card_schema: ClassVar[type[HeadCard]]

    def __init__(
        self, core: PreTrainedModel, fingerprint: Fingerprint, *, num_layers: int, draft_size: int, rank: int | None
    ) -> None:
        """A head without weights, on the meta device."""
        super().__init__()
        family = family_of(core.config)
        own = family.decoder_layers(core)
        head: Any = core.get_submodule(family.head)
        kind: Any = layer_class(own[-1])
        self.model_name = str(core.name_or_path)
        self.text: str = ""
        self.agreement: dict[str, tuple[float, ...]] = {}
        self._fingerprint, self._rank = fingerprint, rank
        self._cap: float | None = getattr(core.config, "final_logit_softcapping", None)
        width = fingerprint.hidden_size
        with torch.device("meta"):
            self.register_buffer("ids", torch.empty(draft_size, dtype=torch.int64))
            # Of the last layer's attention type, as `ModelRunner.adopt` takes them.
            self.extra_layers = nn.ModuleList(kind(core.config, len(own) - 1) for _ in range(num_layers))
            self.projection: nn.Linear | SharedRows = (
                nn.Linear(width, draft_size, bias=head.bias is not None)
                if rank is None
                else SharedRows(width, draft_size, rank)
            )
        self.norm = copy_norm(core.get_submodule(family.final_norm))
        self.eval()

    @property
    def vocabulary(self) -> Tensor:
        """The token id of each column of the logits."""
        return self.ids

    @property
    def layers(self) -> Sequence[nn.Module]:
        """Its own decoder layers."""
        return list(self.extra_layers)

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, T, D) to (B, T, V')."""
        logits: Tensor = self.projection(self.norm(hidden))
        return logits if self._cap is None else self._cap * torch.tanh(logits / self._cap)

    def prepare(self, runner: ModelRunner) -> None:
        """Make ready to draft.

        Raises:
            DraftError: the head was trained for another model.
        """
        if difference := self._fingerprint.difference(Fingerprint.of(runner.model)):
            raise _other_model(self.model_name, difference)
        if isinstance(self.projection, SharedRows) and not self.projection.rows:
            self.projection.bind(runner.head_rows(self.ids))
        runner.pack(self._products())

    def _products(self) -> list[nn.Module]:
        """What is to be packed besides the layers."""
        rows = self.projection.rows if isinstance(self.projection, SharedRows) else []
        return [self.projection, *rows, self.norm]

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write `head.safetensors` and `head.json`, as `load` reads them.

        Args:
            dtype: of the weights in the file; None: as they are.

        Raises:
            DraftError: the head is packed for decoding, or holds numbers that are not finite.
            OutputError: the files cannot be written.
        """
        state: dict[str, Tensor] = self.state_dict()
        if any(is_freed(weight) for weight in (*state.values(), *(part.weight for part in self._linears()))):
            raise DraftError("the head is packed for decoding; close its Engine before saving it")
        _require_finite(state, "the head")
        if dtype is not None:
            state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
        card = self._card(
            vocabulary_size=self._fingerprint.vocabulary_size,
            model=self.model_name,
            num_layers=self._fingerprint.num_layers,
            hidden_size=self._fingerprint.hidden_size,
            extra_layers=len(self.extra_layers),
            draft_vocabulary_size=len(self.ids),
            projection_rank=self._rank,
            text=self.text,
            agreement={text: list(shares) for text, shares in self.agreement.items()},
        )
        sample = {_EMBEDDING: self._fingerprint.embedding, _NORMS: self._fingerprint.norms}
        write_draft_files(Path(folder), HEAD_FILES, card, state | sample)

    def _linears(self) -> list[nn.Linear]:
        return [part for module in self._products() for part in module.modules() if isinstance(part, nn.Linear)]

    @classmethod
    def load(cls, folder: str | Path, model: nn.Module) -> Self:
        """Read what `save` wrote, in the model's type and on its device. An engine may be open on the model.

        Raises:
            DraftError: a file is missing, truncated or malformed, or it is for another model.
        """
        card, tensors = read_draft_files(Path(folder), HEAD_FILES, cls.card_schema)
        core: PreTrainedModel = causal_lm(model)
        try:
            return cls._of_files(card, tensors, core)
        except (DraftError, UsageError) as error:
            raise DraftError(f"{Path(folder) / HEAD_FILES}.safetensors: {error}") from None

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
        sizes = {"num_layers": card.extra_layers, "draft_size": card.draft_vocabulary_size}
        made = cls._of_card(core, card, fingerprint, **sizes, rank=card.projection_rank)
        made.model_name, made.text = card.model, card.text
        made.agreement = {text: tuple(shares) for text, shares in card.agreement.items()}
        _require_alike(tensors, made.state_dict())
        _require_finite(tensors, "it")
        made._take(tensors, core)
        return made

    @classmethod
    @abstractmethod
    def _of_card(cls, core: PreTrainedModel, card: Any, fingerprint: Fingerprint, **sizes: Any) -> Self:
        """A head without weights, as the card says; `sizes` as `__init__` takes them."""

    @abstractmethod
    def _card(self, **common: Any) -> HeadCard:
        """The card, with the fields that all heads have."""

    def _start(self, core: PreTrainedModel, ids: Tensor, starts: Mapping[str, nn.Module], **others: Tensor) -> Self:
        """Take the weights that training starts from: those of the model's last layers, final norm and LM head.

        Args:
            ids: the draft vocabulary.
            starts: modules of the model by the names of those that start as they are, besides these.
            others: further tensors; '__' stands for a dot.
        """
        state = {name.replace("__", "."): value for name, value in others.items()} | self._projection_of(core, ids)
        sources = {f"extra_layers.{index}": layer for index, layer in enumerate(_last(core, len(self.extra_layers)))}
        for name, module in {**sources, **starts, "norm": self.norm}.items():
            state |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
        if set(state) != set(self.state_dict()):
            raise UnsupportedModelError(
                "the model's layers hold other tensors than plain ones of their kind, such as adapters or quantized "
                "weights; merge adapters with merge_and_unload(), or load the model without quantization"
            )
        self._take({name: value.detach().clone() for name, value in state.items()}, core)
        return self

    def _projection_of(self, core: PreTrainedModel, ids: Tensor) -> dict[str, Tensor]:
        rows = head_rows(core, ids)
        if rows is None:
            raise UnsupportedModelError("the model is packed for decoding; close its Engine before making a head")
        found = (
            fresh_change(self.projection, rows.weight) if isinstance(self.projection, SharedRows) else rows.state_dict()
        )
        return {"ids": ids, **{f"projection.{name}": value for name, value in found.items()}}

    def _take(self, state: Mapping[str, Tensor], core: PreTrainedModel) -> None:
        """Take weights as they are, in the type and on the device of the model, and the model's rows."""
        placed = {
            name: value.to(core.device, core.dtype) if value.is_floating_point() else value.to(core.device)
            for name, value in state.items()
        }
        self.load_state_dict(placed, assign=True)
        if isinstance(self.projection, SharedRows) and (rows := head_rows(core, self.ids)) is not None:
            self.projection.bind(rows)


def check_layers(num_layers: int, least: int, fingerprint: Fingerprint) -> None:
    """Refuse a number of layers that a head cannot have.

    Raises:
        UsageError: with the numbers that it can have.
    """
    most = fingerprint.num_layers
    if not least <= num_layers <= most:
        raise UsageError(
            f"the head has {num_layers} layers of its own; it can have {least} to {most}, as many as the model"
        )


def draft_ids(core: PreTrainedModel, vocabulary: DraftVocabulary | None, fingerprint: Fingerprint) -> Tensor:
    """The tokens of a draft vocabulary, or all of them: (V',), int64.

    Raises:
        DraftError: the vocabulary does not fit the model.
    """
    if vocabulary is None:
        return torch.arange(fingerprint.vocabulary_size)
    vocabulary.require(fingerprint.vocabulary_size, end_ids_of(core))
    return vocabulary.ids


def _last(core: PreTrainedModel, count: int) -> list[nn.Module]:
    """The last `count` decoder layers that are made like the very last one; that one again where there are fewer."""
    layers = family_of(core.config).decoder_layers(core)
    shapes = [{name: value.shape for name, value in layer.state_dict().items()} for layer in layers]
    alike = [layer for layer, own in zip(layers, shapes, strict=True) if own == shapes[-1]]
    return [layers[-1]] * max(0, count - len(alike)) + alike[max(0, len(alike) - count) :]


def _other_model(name: str, difference: str) -> DraftError:
    return DraftError(
        f"the head is for another model, {name or 'which has no name'}: {difference}; "
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
