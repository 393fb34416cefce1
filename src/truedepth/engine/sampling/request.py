"""What is asked of decoding: a prompt, and when to stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral

from truedepth.engine.sampling.logits_sampler import SamplingParams
from truedepth.errors import UsageError
from truedepth.records.given import require_type
from truedepth.records.text_files import refuse_lone_surrogates


@dataclass(frozen=True)
class Request:
    """One sequence to write.

    Attributes:
        prompt_ids: token ids of the prompt, special tokens included.
        max_new_tokens: stop after so many.
        sampling_params: how tokens are chosen; greedy unless said.
        stop: strings before which the text ends. Special tokens count with their names, and they may begin in
            the prompt.
        stop_token_ids: tokens that end the text, besides the model's own end tokens.
        ignore_end: write on beyond the model's end tokens.
        logprobs: keep each token's log probability.

    Raises:
        UsageError: a value of a wrong type, an empty prompt, fewer than one new token, or an empty stop string.
    """

    prompt_ids: Sequence[int]
    max_new_tokens: int = 256
    sampling_params: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_end: bool = False
    logprobs: bool = False

    def __post_init__(self) -> None:
        require_type("prompt_ids", self.prompt_ids, Sequence, "a list of token ids")
        for token in self.prompt_ids:
            require_type("a token of the prompt", token, Integral, "a token id")
        require_type("max_new_tokens", self.max_new_tokens, int, "a whole number")
        require_type("sampling_params", self.sampling_params, SamplingParams, "truedepth.SamplingParams(...)")
        require_type("stop", self.stop, tuple, "text, or a list of texts")
        for text in self.stop:
            require_type("a stop string", text, str, "text")
        require_type("logprobs", self.logprobs, bool, "True or False")
        if len(self.prompt_ids) == 0:
            raise UsageError("the prompt is empty; give some text")
        if self.max_new_tokens < 1:
            raise UsageError(f"the number of new tokens is {self.max_new_tokens}; it must be at least 1")
        if not all(self.stop):
            raise UsageError("a stop string is empty; give at least one character")
        refuse_lone_surrogates(self.stop, "a stop string", UsageError)
