"""What `decoding.py` compares: ways to write greedy text with the same weights, all asked in the same way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from llama_cpp import BYTES_PER_VALUE, LlamaProcess
from torch import Tensor, nn
from transformers import CompileConfig, PreTrainedModel, StaticCache
from transformers.generation.streamers import BaseStreamer

from truedepth.engine.drafts.drafts import Draft
from truedepth.engine.drafts.policy import SpeculationPolicy
from truedepth.engine.engine import Engine
from truedepth.engine.sampling.request import Request

Prompts = Sequence[list[int]]


@dataclass(frozen=True)
class Answer:
    """How a batch of prompts was answered.

    Attributes:
        tokens: the new ones of each sequence; empty where the entrant gives only text.
        text: of the sequence, where the entrant gives no tokens.
        new: new tokens of all sequences.
        early: those of them that were there when the first was.
        first_seconds: until the first token.
        seconds: until the last.
        passes: target passes after the first token, for each sequence.
        drafted, accepted: tokens, where the entrant speculates.
    """

    tokens: list[list[int]]
    new: int
    early: int
    first_seconds: float
    seconds: float
    passes: int
    drafted: int = 0
    accepted: int = 0
    text: str = ""


class DraftConfig(Protocol):
    """Answers prompts greedily, never stopping at an end token.

    Attributes:
        name: in tables and plots.
        family: `truedepth`, `transformers` or `llama.cpp`.
        speculates: whether it drafts.
        bytes_per_value: width of its weights; None: as the model has them.
        largest_batch: how many prompts it takes at once; None: any number.
    """

    @property
    def name(self) -> str: ...

    @property
    def family(self) -> str: ...

    @property
    def speculates(self) -> bool: ...

    @property
    def bytes_per_value(self) -> float | None: ...

    @property
    def largest_batch(self) -> int | None: ...

    def answer(self, prompts: Prompts, new_tokens: int) -> Answer:
        """Answer a batch of prompts with `new_tokens` tokens each."""
        ...


@dataclass
class Truedepth:
    """This project's engine."""

    name: str
    engine: Engine
    drafts: tuple[Draft, ...] = ()
    policy: Callable[[], SpeculationPolicy] | None = None
    family: str = "truedepth"
    bytes_per_value: float | None = None
    largest_batch: int | None = None

    def __post_init__(self) -> None:
        # One policy for all prompts, as in a program that answers one after the other.
        self._policy = self.policy() if self.policy else None

    @property
    def speculates(self) -> bool:
        return bool(self.drafts)

    def answer(self, prompts: Prompts, new_tokens: int) -> Answer:
        requests = [Request(prompt, new_tokens, ignore_end=True) for prompt in prompts]
        results = self.engine.generate(requests, drafts=self.drafts, policy=self._policy)
        return Answer(
            tokens=[list(result.token_ids) for result in results],
            new=sum(len(result.token_ids) for result in results),
            early=len(results),
            first_seconds=results[0].timings.first_token,
            seconds=max(result.timings.total for result in results),
            passes=sum(len(result.steps) for result in results),
            drafted=sum(result.drafted for result in results),
            accepted=sum(result.accepted for result in results),
        )


class _Stopwatch(BaseStreamer):
    """Notes when the first new tokens come from `generate`, and how many they are."""

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self.first: tuple[float, int] | None = None
        self._prompt = True

    def put(self, value: Tensor) -> None:
        if self._prompt:
            self._prompt = False
        elif self.first is None:
            self.first = (time.perf_counter() - self.begun, value.numel())

    def end(self) -> None:
        pass


@dataclass
class Transformers:
    """`generate` of transformers.

    Attributes:
        options: what `generate` is given besides.
        settings: of the model's generation configuration while it runs; assistants read theirs there.
        static: decode over one cache of this many entries, allocated once; 0: the default, which grows.
    """

    name: str
    model: PreTrainedModel
    options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    static: int = 0
    family: str = "transformers"
    bytes_per_value: float | None = None
    speculates: bool = False
    largest_batch: int | None = None
    _caches: dict[int, StaticCache] = field(default_factory=dict)

    def answer(self, prompts: Prompts, new_tokens: int) -> Answer:
        ids, mask = _left_padded(prompts)
        passes: list[int] = []
        with self._configured(passes):
            watch = _Stopwatch()
            generate: Any = self.model.generate
            written = generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=new_tokens,
                streamer=watch,
                **self.options,
                **self._cache(len(prompts)),
            )
            seconds = time.perf_counter() - watch.begun
        rows: list[list[int]] = written[:, ids.shape[1] :].tolist()
        new = sum(map(len, rows))
        assert watch.first is not None
        first_seconds, early = watch.first
        if not self.speculates:
            return Answer(rows, new, early, first_seconds, seconds, passes=new - early)
        # A pass verifies all its tokens but the first; the first pass reads the prompt too.
        drafted = sum(passes) - ids.shape[1] - (len(passes) - 1)
        return Answer(
            rows, new, early, first_seconds, seconds, len(passes) - 1, drafted=drafted, accepted=new - len(passes)
        )

    @contextmanager
    def _configured(self, passes: list[int]) -> Iterator[None]:
        """Put the settings in force, and note the passes of an entrant that speculates."""
        config: Any = self.model.generation_config
        before = {name: getattr(config, name) for name in self.settings}
        hook = None
        if self.speculates:
            hook = self.model.register_forward_pre_hook(_counter(self.model, passes), with_kwargs=True)
        try:
            for name, value in self.settings.items():
                setattr(config, name, value)
            yield
        finally:
            for name, value in before.items():
                setattr(config, name, value)
            if hook is not None:
                hook.remove()

    def _cache(self, batch: int) -> dict[str, Any]:
        if not self.static:
            return {}
        if batch not in self._caches:
            self._caches[batch] = StaticCache(self.model.config, max_cache_len=self.static)
        self._caches[batch].reset()
        return {"past_key_values": self._caches[batch]}


def _counter(model: PreTrainedModel, passes: list[int]) -> Callable[..., None]:
    """A hook that notes how many tokens each pass at full depth takes (a draft by early exit lowers the depth)."""
    full = model.config.num_hidden_layers

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if model.config.num_hidden_layers == full:
            passes.append(int(kwargs["input_ids"].shape[1]))

    return note


def _left_padded(prompts: Prompts) -> tuple[Tensor, Tensor]:
    """Ids and mask, (B, T), int64."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def compiled(name: str, model: PreTrainedModel, static: int) -> Transformers:
    """transformers with a static cache, its decode step compiled by TorchInductor."""
    compile_config = CompileConfig(mode="default")
    vars(compile_config)["_compile_all_devices"] = True  # CPUs too
    return Transformers(name, model, {"compile_config": compile_config}, static=static)


class LlamaCpp:
    """llama.cpp in a process of its own."""

    family = "llama.cpp"
    speculates = False
    largest_batch = 1

    def __init__(self, name: str, python: str, model: Path, kind: str, context: int) -> None:
        self.name = name
        self.bytes_per_value: float | None = BYTES_PER_VALUE[kind]
        self._process = LlamaProcess(python, model, torch.get_num_threads(), context)

    def answer(self, prompts: Prompts, new_tokens: int) -> Answer:
        found = self._process.answer(prompts[0], new_tokens)
        new = int(found["predicted_n"])
        return Answer(
            tokens=[],
            new=new,
            early=1,
            first_seconds=found["prompt_ms"] / 1000,
            seconds=(found["prompt_ms"] + found["predicted_ms"]) / 1000,
            passes=new - 1,
            text=found["text"],
        )

    def close(self) -> None:
        self._process.close()
