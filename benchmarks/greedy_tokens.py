"""Greedy tokens of a model by `transformers`, and where those of another program differ from them.

A tie that is decided otherwise is no mistake, so a difference comes with how clear the choice was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from truedepth.records.progress import terminal


def greedy(model: Any, prompts: Sequence[list[int]], new_tokens: int) -> list[list[int]]:
    """What transformers writes, a list of token ids for each prompt; the end of a text ends nothing."""
    model.generation_config.eos_token_id = None
    found = []
    with torch.inference_mode(), terminal("Writing with transformers", len(prompts)) as advance:
        for ids in prompts:
            written = model.generate(torch.tensor([ids]), max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
            found.append(written[0, len(ids) :].tolist())
            advance()
    return found


def differences(
    model: Any, prompts: Sequence[list[int]], expected: Sequence[list[int]], got: Sequence[list[int]]
) -> list[dict[str, Any]]:
    """Prompts whose tokens differ: where first, and by how much transformers preferred its own token there."""
    found = []
    for number, (prompt, own, other) in enumerate(zip(prompts, expected, got, strict=True)):
        if own == other:
            continue
        at = next(place for place, pair in enumerate(zip(own, other, strict=True)) if pair[0] != pair[1])
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *own[:at]]])).logits[0, -1]  # (V,)
        found.append({"prompt": number, "token": at, "margin": float(logits[own[at]] - logits[other[at]])})
    return found
