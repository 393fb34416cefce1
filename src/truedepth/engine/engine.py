"""The engine: a model made ready for decoding, and sequences written with it, with or without a draft."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from types import NoneType
from typing import Any, Self, TypeVar, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from truedepth.engine.cpu.layouts import can_lay_out
from truedepth.engine.cpu.packing import Packing
from truedepth.engine.drafts.adaptive import AdaptivePolicy
from truedepth.engine.drafts.drafts import AnyDraft, Draft, EagleDraft
from truedepth.engine.drafts.heads.draft_head import DraftHead, load_head, refuse_both
from truedepth.engine.drafts.heads.eagle_head import EagleHead
from truedepth.engine.drafts.heads.exit_head import ExitHead
from truedepth.engine.drafts.heads.packaged import DEFAULT_DRAFT, packaged_head
from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary, end_ids_of
from truedepth.engine.drafts.policy import NoSpeculation, SpeculationPolicy
from truedepth.engine.invariance import batch_variance
from truedepth.engine.loop.decoder import Decoder, Observer, Update
from truedepth.engine.runner.capture import record_cuda_graph
from truedepth.engine.runner.model_runner import ModelRunner
from truedepth.engine.sampling.batch_sampler import BatchSampler
from truedepth.engine.sampling.detokenizer import IncrementalDetokenizer
from truedepth.engine.sampling.logits_sampler import LogitsSampler
from truedepth.engine.sampling.request import Request
from truedepth.engine.sampling.result import GenerationResult
from truedepth.engine.sampling.sequences import SequenceState
from truedepth.errors import PlanError, UsageError
from truedepth.families import family_of
from truedepth.models.adapters import require_in_layers
from truedepth.models.context import BY_LENGTH, context_length, rotary_type
from truedepth.models.rewire import applied_plan, causal_lm
from truedepth.parallel.split import is_split
from truedepth.plan import DepthPlan
from truedepth.records.given import require_type
from truedepth.records.progress import Progress, silent

DraftT = TypeVar("DraftT", bound=AnyDraft)


class Engine:
    """A model made ready for decoding. Use it in a `with` statement, or `close` it.

    While an engine is open, the weights of a CPU model are packed (see `truedepth.engine.cpu.packing`): the model can
    run, but not be saved, trained or given another plan. Weights under adapters, or that a hook, a parametrization or
    another module may change or read, stay as they are. One thread at a time may use it.

    Args:
        model: a causal language model of a supported family, bare or wrapped by PEFT.
        tokenizer: for text and stop strings; None: token ids only.
        target: the plan whose tokens, or distribution, results have; None: the plan that the model runs.

    Raises:
        UnsupportedModelError: the family is unknown, or an adapter or a hook acts outside of the model's layers.
        PlanError: the target is for another number of layers, or merges layers that the model does not.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        target: DepthPlan | None = None,
    ) -> None:
        require_type("target", target, (DepthPlan, NoneType), "a DepthPlan, or None", PlanError)
        require_type("tokenizer", tokenizer, (PreTrainedTokenizerBase, NoneType), "a tokenizer, or None")
        core: PreTrainedModel = causal_lm(model)
        require_in_layers(model)
        family = family_of(core.config)
        num_layers = len(family.decoder_layers(core))
        running = applied_plan(model)
        self.target = target or running or DepthPlan.full(num_layers)
        _check_target(self.target, num_layers, running)
        self.model, self.tokenizer, self._given = core, tokenizer, model
        embedding: Any = core.get_submodule(family.embedding)
        packs = can_lay_out(embedding.weight.device, embedding.weight.dtype)
        packing = Packing(core, family) if packs else None
        self.runner = ModelRunner(core, packing)
        self._release = _release_when_dropped(self, packing)
        self._drafts: dict[Hashable, AnyDraft] = {}
        self._policies: dict[tuple[AnyDraft, ...], SpeculationPolicy] = {}

    def draft(
        self,
        plan: DepthPlan,
        *,
        head: DraftHead | None = None,
        vocabulary: DraftVocabulary | None = None,
    ) -> Draft:
        """Prepare a plan as a draft, once for the same arguments; see `Draft.of`."""
        return self.once(
            (plan, head, vocabulary),
            lambda: Draft.of(plan, self.target, self.runner, head=head, vocabulary=vocabulary),
        )

    def draft_of(self, head: ExitHead | EagleHead, vocabulary: DraftVocabulary | None = None) -> AnyDraft:
        """Prepare the draft of a trained head, once: an exit head's plan, or an EAGLE head by itself.

        Raises:
            DraftError: the head does not fit the model or the target.
            UsageError: there is a draft vocabulary besides.
        """
        refuse_both(vocabulary)
        if isinstance(head, ExitHead):
            return self.draft(head.exit, head=head)
        return self.once(head, lambda: EagleDraft.of(head, self.target, self.runner))

    def default_draft(self, vocabulary: DraftVocabulary | None = None) -> AnyDraft:
        """Prepare the draft of the head that comes with the model, once.

        Raises:
            UsageError: no head comes with it, or there is a draft vocabulary besides.
            DraftError: the model is not the one of that name.
        """
        refuse_both(vocabulary)
        folder = packaged_head(str(self.model.name_or_path))
        return self.once(DEFAULT_DRAFT, lambda: self.draft_of(load_head(folder, self.model)))

    def once(self, key: Hashable, prepare: Callable[[], DraftT]) -> DraftT:
        """The draft of a key, prepared on first use: one and the same, so that what is seen of it adds up."""
        if key not in self._drafts:
            self._drafts[key] = prepare()
        return cast(DraftT, self._drafts[key])

    def generate(
        self,
        requests: Sequence[Request],
        *,
        drafts: Sequence[AnyDraft] = (),
        policy: SpeculationPolicy | None = None,
        samplers: Sequence[LogitsSampler] | None = None,
        observers: Sequence[Observer] = (),
        progress: Progress = silent,
    ) -> list[GenerationResult]:
        """Write all of `requests` as one batch.

        Args:
            drafts: what to speculate with; none: plain decoding.
            policy: how many tokens to draft when; None: what pays, by what the engine has seen of the same drafts.
            samplers: one for each request, instead of what its sampling parameters say.
            observers: who is shown the target's hidden states.
            progress: shown the reading of long prompts.

        Returns:
            A result for each request, in their order.

        Raises:
            UsageError: no request, or one that does not fit the model's context.
            UnsupportedModelError: an adapter or a hook has come since, that acts outside of the model's layers.
            DecodingError: logits that are not numbers.
        """
        sequences = self.sequences(requests)
        steps = self.steps(
            sequences, drafts=drafts, policy=policy, samplers=samplers, observers=observers, progress=progress
        )
        for _ in steps:
            pass
        return [sequence.result() for sequence in sequences]

    def steps(
        self,
        sequences: Sequence[SequenceState],
        *,
        drafts: Sequence[AnyDraft] = (),
        policy: SpeculationPolicy | None = None,
        samplers: Sequence[LogitsSampler] | None = None,
        observers: Sequence[Observer] = (),
        progress: Progress = silent,
    ) -> Iterator[list[Update]]:
        """The same step by step; closing the iterator frees the caches."""
        require_in_layers(self._given)
        self.runner.refresh()
        samplers = samplers or [LogitsSampler.of(sequence.request.sampling_params) for sequence in sequences]
        if policy is None or not drafts:
            policy = self._policy(tuple(drafts))
        sampler = BatchSampler(samplers, self.runner.vocabulary_size)
        captured = self.runner.device.type == "cuda" and not is_split(self.model)  # a replay would not be counted
        record = record_cuda_graph if captured else None
        yield from Decoder(
            self.runner, self.target, drafts, policy, sequences, sampler, record, observers, progress
        ).steps()

    def _policy(self, drafts: tuple[AnyDraft, ...]) -> SpeculationPolicy:
        """One for each choice of drafts, which goes on from call to call with what it has seen."""
        if drafts not in self._policies:
            self._policies[drafts] = AdaptivePolicy(len(drafts)) if drafts else NoSpeculation()
        return self._policies[drafts]

    def sequences(self, requests: Sequence[Request]) -> list[SequenceState]:
        """Sequences for `steps`, one for each request.

        Raises:
            UsageError: see `generate`.
        """
        if not requests:
            raise UsageError("there is nothing to generate; give at least one request")
        return [self._sequence(index, request) for index, request in enumerate(requests)]

    def _sequence(self, index: int, request: Request) -> SequenceState:
        check_context(self.model.config, len(request.prompt_ids), request.max_new_tokens)
        _check_tokens(request.prompt_ids, self.runner.vocabulary_size)
        ends = request.stop_token_ids | (frozenset() if request.ignore_end else self.end_ids)
        if request.stop and self.tokenizer is None:
            raise UsageError("stop strings need a tokenizer; give the engine one, or use stop_token_ids")
        detokenizer = None
        if self.tokenizer is not None:
            detokenizer = IncrementalDetokenizer(self.tokenizer, request.stop, request.prompt_ids)
        return SequenceState(index, request, ends, detokenizer)

    @property
    def rounding(self) -> str | None:
        """Why drafting may change a token by rounding, where two are nearly equally likely.

        None: verifying computes the very bits of decoding one by one, so that greedy text is the same whatever drafts.
        """
        return batch_variance(self.model, self.runner.family)

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end a text, by the model's generation configuration."""
        return end_ids_of(self.model)

    def close(self) -> None:
        """Put the model's weights back, bit for bit. The engine cannot be used afterwards."""
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _release_when_dropped(engine: Engine, packing: Packing | None) -> Callable[[], object]:
    """What puts a model's weights back, once; nobody referring to the engine any more does so too."""
    if packing is None:
        return lambda: None
    release = weakref.finalize(engine, packing.unpack)
    release.atexit = False
    return release


def check_context(config: Any, read: int, max_new_tokens: int) -> None:
    """Refuse what does not fit the model's context.

    Raises:
        UsageError: with how many tokens would fit.
    """
    context = context_length(config)
    if context is None:
        return
    if read + max_new_tokens <= context:
        return
    kind = rotary_type(config)
    why = f" (beyond it, its rotary embedding of type '{kind}' would depend on the batch)" if kind in BY_LENGTH else ""
    if read >= context:
        raise UsageError(f"the prompt has {read} tokens, but the model's context is {context}{why}; shorten it")
    raise UsageError(
        f"a prompt of {read} tokens and {max_new_tokens} new ones exceed the model's context of {context}{why}; "
        f"ask for at most {context - read} new tokens"
    )


def _check_tokens(ids: Sequence[int], vocabulary_size: int) -> None:
    unknown = next((token for token in ids if not 0 <= token < vocabulary_size), None)
    if unknown is not None:
        raise UsageError(
            f"the prompt has token {unknown}, but the model knows tokens 0 to {vocabulary_size - 1}; "
            "use the model's own tokenizer"
        )


def _check_target(target: DepthPlan, num_layers: int, running: DepthPlan | None) -> None:
    if target.num_layers != num_layers:
        raise PlanError(
            f"the plan '{target}' is for {target.num_layers} layers, but the model has {num_layers}; "
            "make a plan for this model"
        )
    merged = {stage for stage in target.stages if stage.merged}
    if merged != {stage for stage in (running.stages if running else ()) if stage.merged}:
        raise PlanError(
            f"the plan '{target}' merges other layers than the model now does; run truedepth.apply(model, plan) first"
        )
