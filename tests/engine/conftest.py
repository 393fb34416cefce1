"""Fixtures for decoding: plans, unequal prompts, and what `transformers` writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from truedepth.engine.drafts.drafts import Draft
from truedepth.engine.sampling.request import Request
from truedepth.plan import DepthPlan

NUM_LAYERS = 6


@pytest.fixture(scope="session")
def plan_of() -> Callable[..., DepthPlan]:
    """`plan_of("0 (1|2) 5", form="lp", prefill="plan")`: a plan for the six layers of the tiny models."""

    def make(notation: str, form: Any = "lp", prefill: Any = "plan") -> DepthPlan:
        return DepthPlan.parse(notation, NUM_LAYERS, form, prefill)

    return make


@pytest.fixture(scope="session")
def apart() -> Callable[[Draft], Draft]:
    """`apart(draft)`: the same draft with all of its states and cache entries apart from the target's."""

    def make(draft: Draft) -> Draft:
        alone = draft.shared + draft.alone
        kept = frozenset(layer for stage in alone for layer in stage.layers)
        return replace(draft, shared=(), alone=alone, rest=draft.shared + draft.rest, kept=kept)

    return make


@pytest.fixture(scope="session")
def prompts(token_ids: Callable[..., Any]) -> list[list[int]]:
    """Four prompts of 5, 1, 11 and 5 tokens: a single token, two of one length, and some over the sliding windows."""
    return [token_ids(1, length, seed=seed)[0].tolist() for seed, length in enumerate((5, 1, 11, 5))]


@pytest.fixture(scope="session")
def asked(prompts: list[list[int]]) -> Callable[..., list[Request]]:
    """`asked(new, ...)`: a greedy request for each prompt.

    `new` is a number of tokens for all or one for each; end tokens are ignored unless keywords of `Request` say more.
    """

    def make(new: int | Sequence[int] = 12, **options: Any) -> list[Request]:
        lengths = [new] * len(prompts) if isinstance(new, int) else new
        options = {"ignore_end": True, **options}
        return [Request(prompt, length, **options) for prompt, length in zip(prompts, lengths, strict=True)]

    return make


@pytest.fixture(scope="session")
def generated() -> Callable[..., list[tuple[int, ...]]]:
    """`generated(model, requests)`: greedy texts of `transformers`, one prompt at a time, by the model's plan."""

    def write(model: Any, requests: Sequence[Request], eos: int | None = None) -> list[tuple[int, ...]]:
        import torch

        texts = []
        for request in requests:
            ids = torch.tensor([list(request.prompt_ids)])
            options = {"max_new_tokens": request.max_new_tokens, "do_sample": False, "pad_token_id": 0}
            model.generation_config.eos_token_id = eos
            output = model.generate(ids, attention_mask=torch.ones_like(ids), **options)  # (1, T)
            texts.append(tuple(output[0, ids.shape[1] :].tolist()))
        return texts

    return write
