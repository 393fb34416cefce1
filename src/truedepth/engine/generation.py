"""Text from prompts, whole or a piece at a time, with or without a draft.

This is the level of text and plans as a user writes them; `truedepth.engine.engine` below works with token ids.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack, cast, overload

from transformers import PreTrainedTokenizerBase

from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary
from truedepth.engine.engine import Engine
from truedepth.engine.sampling.detokenizer import IncrementalDetokenizer
from truedepth.engine.sampling.logits_sampler import SamplingParams
from truedepth.engine.sampling.request import Request
from truedepth.engine.sampling.result import GenerationResult
from truedepth.engine.sampling.sequences import SequenceState
from truedepth.engine.speculation import DraftLike, Speculation
from truedepth.errors import UsageError
from truedepth.methods.plan_text import PlanLike, read_plan
from truedepth.models.loading.load import LoadedModel
from truedepth.records.given import require_type
from truedepth.records.messages import one_line
from truedepth.records.progress import Progress, silent
from truedepth.records.text_files import refuse_lone_surrogates

_WITHOUT_TEMPLATE = "continue the prompt without a template by raw=True (--raw)"

Source = LoadedModel | Engine
"""What text is made with. For a loaded model an engine is opened, and closed at the end."""


class Options(TypedDict, total=False):
    """What `generate` and `stream` take besides prompts. See `generate`."""

    plan: PlanLike | None
    draft: DraftLike | Sequence[DraftLike] | None
    num_speculative_tokens: int | None
    max_new_tokens: int
    sampling_params: SamplingParams | None
    raw: bool
    chat_template: str | None
    stop: str | Sequence[str]
    logprobs: bool
    vocabulary: DraftVocabulary | str | Path | None
    progress: Progress


@overload
def generate(source: Source, prompts: str, **options: Unpack[Options]) -> GenerationResult: ...
@overload
def generate(
    source: Source, prompts: list[str] | tuple[str, ...], **options: Unpack[Options]
) -> list[GenerationResult]: ...
def generate(
    source: Source, prompts: str | list[str] | tuple[str, ...], **options: Unpack[Options]
) -> GenerationResult | list[GenerationResult]:
    """Answer prompts where the tokenizer has a chat template, else continue them.

    Args:
        prompts: one, or several, which are decoded as one batch.
        plan: write with this plan: `exit:8`, a plan file, a run's folder, a `DepthPlan`, ...; None: what the model or
            the engine runs.
        draft: speculate with this: a plan likewise, a trained head or its folder, `default` for the head that comes
            with the model; several to choose from at each step. Text is drafted with it and verified with the plan,
            whose text, or distribution, results.
        num_speculative_tokens: draft so many tokens each time, 1 to 32; None (the default): what pays, by what is seen.
        max_new_tokens: stop after so many; 256 by default.
        sampling_params: how tokens are chosen; greedy by default.
        raw: continue the prompt even if there is a chat template.
        chat_template: the name of the chat template, where the tokenizer has several; None: the one named `default`.
        stop: a string before which the text ends, or several. Special tokens count with their names (`</s>`), and it
            may begin in the prompt.
        logprobs: keep each token's log probability.
        vocabulary: the tokens that a draft's plan may propose, or their folder; None: all, or those of the vocabulary
            in the run's folder that is the draft.
        progress: shown the reading of long prompts; `truedepth.records.progress.terminal` is one.

    Returns:
        A result, or a list of them for a list of prompts.

    Raises:
        UsageError: a prompt that is empty or does not fit the model's context, a chat template that refuses it, an
            option that is out of range, or a plan that the open engine does not run.
        PlanError, MethodError: a plan or draft that cannot be read or does not fit the model.
        DraftError: a head or a vocabulary that does not fit.
        DecodingError: logits that are not numbers.
    """
    require_type("prompts", prompts, (str, list, tuple), "a text, or a list of texts")
    asked = _Asked(**options)
    requests = asked.requests(_tokenizer_of(source), [prompts] if isinstance(prompts, str) else prompts)
    with asked.open(source) as engine:
        drafts, policy = asked.prepare(engine)
        results = engine.generate(requests, drafts=drafts, policy=policy, progress=asked.progress)
    return results[0] if isinstance(prompts, str) else results


def stream(source: Source, prompt: str, **options: Unpack[Options]) -> Stream:
    """The same for one prompt, a piece at a time.

        with truedepth.stream(loaded, "Why is the sky blue?", draft="exit:8") as stream:
            for piece in stream:
                print(piece.text, end="", flush=True)
        print(stream.result.tokens_per_second)

    Raises:
        UsageError, PlanError, MethodError, DraftError: see `generate`; raised here, not by the first piece.
        DecodingError: while pieces come.
    """
    asked = _Asked(**options)
    (request,) = asked.requests(_tokenizer_of(source), [prompt])
    engine = asked.engine(source)
    try:
        drafts, policy = asked.prepare(engine)
        (sequence,) = engine.sequences([request])
        steps = engine.steps([sequence], drafts=drafts, policy=policy, progress=asked.progress)
    except BaseException:
        if engine is not source:
            engine.close()
        raise
    return Stream(sequence, steps, None if engine is source else engine)


@dataclass(frozen=True, slots=True)
class Piece:
    """The next part of a text that is being written: tokens that a step added, of one origin.

    Attributes:
        text: what became final with them. It may be empty: the beginning of a character or of a stop string is held
            back. All pieces together are the text of the result.
        token_ids: the tokens.
        from_draft: whether the draft proposed them.
    """

    text: str
    token_ids: tuple[int, ...]
    from_draft: bool


class Stream(Iterator[Piece]):
    """Text while it is written: iterate over its pieces.

    Its memory is freed, and an engine that was opened for it closed, at the last piece, by `close`, at the end of a
    `with` statement, or when nobody refers to it any more.
    """

    def __init__(self, sequence: SequenceState, steps: Iterator[Any], engine: Engine | None) -> None:
        self._sequence, self._steps = sequence, steps
        self._ready: deque[Piece] = deque()
        self._finalizer = weakref.finalize(self, _release, steps, engine)
        self._finalizer.atexit = False

    def __next__(self) -> Piece:
        try:
            while not self._ready:
                for sequence, count in next(self._steps):
                    self._ready.extend(_pieces(sequence, count))
        except BaseException:  # StopIteration too
            self.close()
            raise
        return self._ready.popleft()

    def close(self) -> None:
        """Write no more."""
        self._ready.clear()
        self._finalizer()

    @property
    def result(self) -> GenerationResult:
        """What was written. After `close` it is what there was by then, with the finish reason `cancelled`.

        Raises:
            UsageError: the text is still being written.
        """
        if self._finalizer.alive and self._sequence.finish_reason is None:
            raise UsageError("the text is still being written; read the stream to its end, or close it")
        return self._sequence.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _release(steps: Any, engine: Engine | None) -> None:
    steps.close()
    if engine is not None:
        engine.close()


def _pieces(sequence: SequenceState, count: int) -> Iterator[Piece]:
    """The last `count` tokens of a sequence."""
    detokenizer = cast(IncrementalDetokenizer, sequence.stop_checker)
    if sequence.finish_reason is not None:
        detokenizer.finish()
    read, written = len(sequence.request.prompt_ids), sequence.new_tokens
    for from_draft, run in groupby(range(written - count, written), key=sequence.from_draft.__getitem__):
        positions = list(run)
        first, end = positions[0], positions[-1] + 1
        text = "".join(detokenizer.texts[first:end])
        yield Piece(text, tuple(sequence.tokens[read + first : read + end]), from_draft)


@dataclass(frozen=True, kw_only=True)
class _Asked(Speculation):
    """The options of one call."""

    plan: PlanLike | None = None
    max_new_tokens: int = 256
    sampling_params: SamplingParams | None = None
    raw: bool = False
    chat_template: str | None = None
    stop: str | Sequence[str] = ()
    logprobs: bool = False
    progress: Progress = silent

    def requests(self, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[Request]:
        require_type("raw", self.raw, bool, "True or False")
        require_type("stop", self.stop, (str, list, tuple), "text, or a list of texts")
        return [
            Request(
                encode_prompt(tokenizer, prompt, self.raw, self.chat_template),
                max_new_tokens=self.max_new_tokens,
                sampling_params=self.sampling_params or SamplingParams(),
                stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
                logprobs=self.logprobs,
            )
            for prompt in prompts
        ]

    def engine(self, source: Source) -> Engine:
        """The engine of a source: itself, or one that is opened on the model."""
        if isinstance(source, LoadedModel):
            target = None if self.plan is None else read_plan(self.plan, source.num_layers)
            return Engine(source.model, source.tokenizer, target=target)
        if self.plan is not None and read_plan(self.plan, source.target.num_layers) != source.target:
            raise UsageError(
                f"the engine is open with the plan '{source.target}'; open one with the other plan: "
                "truedepth.Engine(model, tokenizer, target=plan)"
            )
        return source

    def open(self, source: Source) -> AbstractContextManager[Engine]:
        """The same, closed in the end if it was opened here."""
        engine = self.engine(source)
        return nullcontext(engine) if engine is source else engine


def _tokenizer_of(source: Source) -> PreTrainedTokenizerBase:
    if not isinstance(source, Source):
        raise UsageError(
            f"cannot generate with a {type(source).__name__}; "
            "give what truedepth.load returns, or truedepth.Engine(model, tokenizer)"
        )
    if source.tokenizer is None:
        raise UsageError("the engine has no tokenizer; open it with one, or give token ids to Engine.generate")
    return source.tokenizer


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str, raw: bool, chat_template: str | None = None
) -> list[int]:
    """The prompt's token ids, special tokens included.

    Raises:
        UsageError: the prompt is empty or no text, or the chat template is missing or refuses it.
    """
    require_type("the prompt", prompt, str, "text")
    if not prompt.strip():
        raise UsageError("the prompt is empty; give some text")
    refuse_lone_surrogates(prompt, "the prompt", UsageError)
    template = None if raw else _template_of(tokenizer, chat_template)
    if template is None:
        plain: list[int] = tokenizer(prompt)["input_ids"]
        return list(plain)
    try:
        encoded: Any = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], chat_template=template, add_generation_prompt=True, return_dict=True
        )
    except Exception as error:
        # Templates are programs that come with the tokenizer, and refuse in many ways.
        raise UsageError(
            f"the tokenizer's chat template cannot write the prompt: {one_line(error)}; {_WITHOUT_TEMPLATE}"
        ) from None
    if not encoded["input_ids"]:
        raise UsageError(f"the tokenizer's chat template writes nothing; {_WITHOUT_TEMPLATE}")
    return list(encoded["input_ids"])


def _template_of(tokenizer: PreTrainedTokenizerBase, name: str | None) -> str | None:
    """The text of a chat template by its name; None where the tokenizer has none."""
    templates: Any = tokenizer.chat_template
    if isinstance(templates, dict):
        wanted = "default" if name is None else name
        if wanted not in templates:
            raise UsageError(
                f"the tokenizer has no chat template '{wanted}', but {', '.join(sorted(templates)) or 'none'}; choose "
                f"one of them by chat_template (--chat-template), or {_WITHOUT_TEMPLATE}"
            )
        templates = templates[wanted]
    elif name is not None:
        has = "no chat template" if templates is None else "only one chat template, without a name"
        raise UsageError(f"the tokenizer has {has}; leave out chat_template (--chat-template)")
    return None if templates is None else str(templates)
