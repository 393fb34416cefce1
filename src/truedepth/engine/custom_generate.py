"""The engine as a decoding method of `transformers`: `model.generate(..., custom_generate=speculate("exit:8"))`.

`generate` prepares inputs, logits processors and stopping criteria as ever; only its loop is replaced.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary
from truedepth.engine.engine import Engine
from truedepth.engine.sampling.logits_sampler import BY_SCORES_ALONE, LogitsSampler, SamplingParams
from truedepth.engine.sampling.request import Request
from truedepth.engine.sampling.result import GenerationResult
from truedepth.engine.speculation import DraftLike, Speculation
from truedepth.errors import UsageError
from truedepth.models.adapters import require_in_layers
from truedepth.models.rewire import causal_lm

_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)

_KNOWN = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}
"""Arguments of a model's forward that are honoured, or that only say how a forward saves work."""

_STATEFUL: dict[type[LogitsProcessor], str] = {
    UnbatchedClassifierFreeGuidanceLogitsProcessor: "guidance_scale",
    SynthIDTextWatermarkLogitsProcessor: "a SynthID watermark",
}
"""Logits processors that count on being called once for each token, in order; by what asks for them."""


def speculate(
    draft: DraftLike | Sequence[DraftLike] | None = None,
    *,
    num_speculative_tokens: int | None = None,
    vocabulary: DraftVocabulary | str | Path | None = None,
    engine: Engine | None = None,
    streamer: BaseStreamer | None = None,
) -> DecodingMethod:
    """Make `generate` of a `transformers` model speculate.

        model.generate(**inputs, max_new_tokens=64, custom_generate=truedepth.speculate("exit:8"))

    Greedily the result is the same. With `do_sample` it has the same distribution, and for one `num_speculative_tokens`
    `torch.manual_seed` makes it repeatable. Each call packs the model and puts it back; for many calls, open an engine
    and give it here.

    Args:
        draft, num_speculative_tokens, vocabulary: see `truedepth.generate`; no draft: plain decoding by the engine.
        engine: an open engine of the model; with the tokenizer, where a draft vocabulary is read from a folder.
        streamer: in place of that of `generate`, which `transformers` does not hand on. For one row.

    Raises:
        UsageError: a draft length that is out of range, or options of a draft without a draft.
    """
    speculation = Speculation(draft=draft, num_speculative_tokens=num_speculative_tokens, vocabulary=vocabulary)
    return DecodingMethod(speculation, engine, streamer)


class DecodingMethod:
    """What `speculate` returns: a decoding method with the signature of `transformers`' own.

    Attributes:
        results: of the last call, one for each row, with what was drafted and accepted; without text.
    """

    def __init__(self, speculation: Speculation, engine: Engine | None, streamer: BaseStreamer | None) -> None:
        self._speculation, self._engine, self._streamer = speculation, engine, streamer
        self.results: list[GenerationResult] = []

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Tensor | GenerateDecoderOnlyOutput:
        """Write on, as `generate` asks for it.

        Args:
            input_ids: the prompts, padded on the left, (B, T), int64.

        Returns:
            Prompts and new tokens, rows that ended early filled with the padding token, (B, T'), int64; or an output
            with these as its `sequences`, where `return_dict_in_generate` is set.

        Raises:
            UsageError: something is asked for that the engine cannot do, such as beams; by name.
            UnsupportedModelError: an adapter acts outside of the model's layers.
            PlanError, MethodError, DraftError: a draft that cannot be read, or does not fit the model.
            DecodingError: logits that are not numbers.
        """
        require_in_layers(model)
        _refuse_unknown(logits_processor, generation_config, model_kwargs)
        if self._streamer is not None and len(input_ids) > 1:
            raise UsageError(f"a streamer takes one row, not {len(input_ids)}; leave it out, or give one prompt")
        padding = _padding(input_ids, model_kwargs.get("attention_mask"), model_kwargs.get("position_ids"))
        requests = _requests(input_ids, padding, generation_config)
        rows = [_StoppingRow(prompt, generation_config.max_length, stopping_criteria) for prompt in input_ids]
        with self._open(model) as engine:
            drafts, policy = self._speculation.prepare(engine)
            sequences = engine.sequences(requests)
            for sequence, row in zip(sequences, rows, strict=True):
                sequence.stop_checker = row
            samplers = _samplers(logits_processor, bool(generation_config.do_sample), input_ids, padding)
            steps = engine.steps(sequences, drafts=drafts, policy=policy, samplers=samplers)
            self._stream(input_ids, rows, steps)
        self.results = [sequence.result() for sequence in sequences]
        written: Any = _joined(input_ids, self.results, generation_config)
        return GenerateDecoderOnlyOutput(sequences=written) if generation_config.return_dict_in_generate else written

    def _open(self, model: PreTrainedModel) -> AbstractContextManager[Engine]:
        if self._engine is None:
            return Engine(model)
        if self._engine.model is not causal_lm(model):
            raise UsageError("the engine given to speculate is for another model; open one with this model")
        return nullcontext(self._engine)

    def _stream(self, input_ids: Tensor, rows: Sequence[_StoppingRow], steps: Iterator[Any]) -> None:
        """Run all steps, and hand what they add on to the streamer."""
        if self._streamer is None:
            deque(steps, maxlen=0)
            return
        self._streamer.put(input_ids.cpu())
        for ((_, count),) in steps:
            self._streamer.put(rows[0].last(count).cpu())
        self._streamer.end()


class _StoppingRow:
    """One row as stopping criteria see it: the prompt, padding included, and the new tokens so far."""

    def __init__(self, prompt: Tensor, length: int, criteria: StoppingCriteriaList) -> None:
        self._ids = prompt.new_empty(1, length)
        self._ids[0, : len(prompt)] = prompt
        self._count, self._criteria = len(prompt), criteria

    def add(self, token: int, *, ends: bool = False) -> bool:
        self._ids[0, self._count] = token
        self._count += 1
        return bool(self._criteria(self._ids[:, : self._count], None).all())

    def finish(self) -> str:
        return ""

    def last(self, count: int) -> Tensor:
        """The last tokens, (count,)."""
        return self._ids[0, self._count - count : self._count]


class _AtRow(LogitsProcessor):
    """A logits processor at one row of the batch, as if it were given all of it: some know rows by their number.

    Args:
        padding: what stands before the row's prompt, (P,).
    """

    def __init__(self, processor: LogitsProcessor, row: int, batch: int, padding: Tensor) -> None:
        self._processor, self._row, self._batch, self._padding = processor, row, batch, padding

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(1, T) and (1, V) to (1, V)."""
        context = torch.cat([self._padding[None], input_ids], 1).repeat(self._batch, 1)
        processed: Tensor = self._processor(context, scores.repeat(self._batch, 1))
        return processed[self._row, None]


def _samplers(
    processors: LogitsProcessorList, sample: bool, input_ids: Tensor, padding: Sequence[int]
) -> list[LogitsSampler]:
    """One for each row."""
    batch = len(input_ids)
    alike = all(type(processor) in BY_SCORES_ALONE for processor in processors)
    if alike or (batch == 1 and not any(padding)):
        return [LogitsSampler(not sample, processors)] * batch
    return [
        LogitsSampler(
            not sample,
            LogitsProcessorList(
                processor
                if type(processor) in BY_SCORES_ALONE
                else _AtRow(processor, row, batch, input_ids[row, : padding[row]])
                for processor in processors
            ),
        )
        for row in range(batch)
    ]


def _requests(input_ids: Tensor, padding: Sequence[int], config: GenerationConfig) -> list[Request]:
    """One for each row; when to stop is left to the stopping criteria."""
    room = config.max_length - input_ids.shape[1]
    seeds: list[int | None] = [None] * len(input_ids)
    if config.do_sample:
        seeds = torch.randint(2**62, (len(input_ids),)).tolist()
    prompts: list[list[int]] = input_ids.tolist()
    return [
        Request(prompt[empty:], max_new_tokens=room, sampling_params=SamplingParams(seed=seed), ignore_end=True)
        for prompt, empty, seed in zip(prompts, padding, seeds, strict=True)
    ]


def _padding(input_ids: Tensor, mask: Tensor | None, positions: Tensor | None) -> list[int]:
    """How many tokens of padding each row begins with."""
    if mask is None:
        mask = torch.ones_like(input_ids)
    shown = mask != 0
    if not bool((shown.long().diff(dim=1) >= 0).all() and shown[:, -1].all()):
        raise UsageError("the attention mask hides tokens after others; pad on the left (tokenizer.padding_side)")
    if positions is not None and not bool((positions == shown.long().cumsum(1) - 1)[shown].all()):
        raise UsageError("position_ids do not count up from 0 in each row; leave them out")
    padding: list[int] = (~shown).sum(1).tolist()
    return padding


def _joined(input_ids: Tensor, results: Sequence[GenerationResult], config: GenerationConfig) -> Tensor:
    """Prompts and new tokens, (B, T')."""
    longest = max(len(result.token_ids) for result in results)
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    filling = ends[0] if config.pad_token_id is None else config.pad_token_id  # as `generate` pads
    if filling is None and any(len(result.token_ids) < longest for result in results):
        raise UsageError("rows of different lengths have come, and there is no token to pad them; give pad_token_id")
    rows = [[*result.token_ids, *[filling] * (longest - len(result.token_ids))] for result in results]
    return torch.cat([input_ids, input_ids.new_tensor(rows)], 1)


def _refuse_unknown(processors: LogitsProcessorList, config: GenerationConfig, model_kwargs: dict[str, Any]) -> None:
    """Refuse what the engine cannot do, by name."""
    mode = config.get_generation_mode()
    if mode not in _MODES:
        raise UsageError(
            f"generate is asked for {mode.value.replace('_', ' ')}, but speculate decodes greedily or by sampling; "
            "leave out num_beams and whatever else chooses another mode"
        )
    if config.return_dict_in_generate:
        for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states"):
            if getattr(config, name):
                raise UsageError(f"speculate keeps nothing for {name}; leave it out")
    for processor in processors:
        if asked := _STATEFUL.get(type(processor)):
            raise UsageError(f"{asked} cannot be used with speculate, which looks at tokens that it may take back")
    cache = model_kwargs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise UsageError("past_key_values holds tokens already, but speculate has caches of its own; leave it out")
    for name, value in model_kwargs.items():
        if name not in _KNOWN and value is not None:
            raise UsageError(f"speculate cannot take {name}; leave it out")
