"""Writing text with a model as it stands, plan included, a piece at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import TextStreamer

from truedepth.errors import UsageError

if TYPE_CHECKING:
    from truedepth.models.load import LoadedModel


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token (greedy).
        top_k: sample from the k most likely tokens only.
        top_p: sample from the smallest set of tokens that has at least this probability (nucleus).
        seed: the same seed gives the same text.

    Raises:
        UsageError: a value that is out of range, or top_k or top_p with temperature 0.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise UsageError(f"temperature is {self.temperature:g}; it must be 0 (greedy) or above")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top-k is {self.top_k}; it must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"top-p is {self.top_p:g}; it must be above 0 and at most 1")
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            raise UsageError("top-k and top-p need sampling; give a temperature above 0 too")

    def to_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of `generate`, which override what the model's own configuration says."""
        if self.temperature == 0:
            return {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
        # transformers would fall back on its own top_k of 50 for None; 0 and 1.0 turn the filters off.
        return {
            "do_sample": True,
            "temperature": self.temperature,
            "top_k": self.top_k or 0,
            "top_p": self.top_p or 1.0,
        }


@dataclass(frozen=True)
class Generated:
    """A text that a model wrote.

    Attributes:
        prompt_tokens: tokens read, special tokens of the chat template included.
        tokens: tokens written, the end-of-text token included.
        first_token_seconds: time to the first token.
        decode_tokens_per_second: over all tokens after the first; None where there is no second token.
    """

    text: str
    prompt_tokens: int
    tokens: int
    first_token_seconds: float
    decode_tokens_per_second: float | None


def generate(
    loaded: LoadedModel,
    prompt: str,
    *,
    max_new_tokens: int = 256,
    sampling: Sampling | None = None,
    raw: bool = False,
    on_text: Callable[[str], None] | None = None,
) -> Generated:
    """Continue a prompt, or answer it where the tokenizer has a chat template.

    Args:
        sampling: greedy where it is None.
        raw: continue the prompt even if there is a chat template.
        on_text: called with each finished piece of text, as soon as it is there.

    Raises:
        UsageError: the prompt is empty or does not fit the model's context, or `max_new_tokens` is below 1.
    """
    sampling = sampling or Sampling()
    if max_new_tokens < 1:
        raise UsageError(f"the number of new tokens is {max_new_tokens}; it must be at least 1")
    inputs = _encode(loaded.tokenizer, prompt, raw)
    read = inputs["input_ids"].shape[1]
    _check_context(loaded.model.config, read, max_new_tokens)
    stream = _Stream(loaded.tokenizer, on_text or (lambda _: None))
    model: Any = loaded.model  # transformers' own type hides `generate`
    with torch.random.fork_rng(enabled=sampling.seed is not None):
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        stream.start()
        output = model.generate(
            **inputs.to(model.device),
            max_new_tokens=max_new_tokens,
            pad_token_id=_padding(loaded),
            streamer=stream,
            **sampling.to_kwargs(),
        )  # (1, read + written)
    return Generated(
        text=str(loaded.tokenizer.decode(output[0, read:], skip_special_tokens=True)),
        prompt_tokens=read,
        tokens=output.shape[1] - read,
        first_token_seconds=stream.first_token_seconds,
        decode_tokens_per_second=stream.decode_tokens_per_second,
    )


class _Stream(TextStreamer):
    """Hands text on piece by piece, and notes when tokens came."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._on_text = on_text
        self._times: list[float] = []

    def start(self) -> None:
        self._times = []
        self._started = time.perf_counter()

    def put(self, value: torch.Tensor) -> None:
        if not self.next_tokens_are_prompt:
            self._times.append(time.perf_counter())
        super().put(value)  # type: ignore[no-untyped-call]

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._on_text(text)

    @property
    def first_token_seconds(self) -> float:
        return self._times[0] - self._started

    @property
    def decode_tokens_per_second(self) -> float | None:
        if len(self._times) < 2:
            return None
        return (len(self._times) - 1) / (self._times[-1] - self._times[0])


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: str, raw: bool) -> Any:
    """The prompt as `input_ids` and `attention_mask`, (1, T) each."""
    if not prompt.strip():
        raise UsageError("the prompt is empty; give some text")
    if tokenizer.chat_template is None or raw:
        return tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )


def _check_context(config: Any, read: int, max_new_tokens: int) -> None:
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is None or read + max_new_tokens <= context:
        return
    if read >= context:
        raise UsageError(f"the prompt has {read} tokens, but the model's context is {context}; shorten it")
    raise UsageError(
        f"a prompt of {read} tokens and {max_new_tokens} new ones exceed the model's context of {context}; "
        f"ask for at most {context - read} new tokens"
    )


def _padding(loaded: LoadedModel) -> int | None:
    """The padding token; where there is none, the end token, as `generate` would choose with a warning."""
    if loaded.tokenizer.pad_token_id is not None:
        return int(loaded.tokenizer.pad_token_id)
    end: int | list[int] | None = loaded.model.generation_config.eos_token_id
    return end[0] if isinstance(end, list) else end
