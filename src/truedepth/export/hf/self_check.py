"""Whether a written checkpoint computes what the plan does on its source, layer by layer, without loading either."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from truedepth.errors import ModelLoadError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from truedepth.models.fuse import Read
    from truedepth.models.loading.source import Source
    from truedepth.plan import DepthPlan

TEXT = (
    "The tide is the rise and fall of the sea, caused by the pull of the moon and the sun. "
    "def tides(hours): return [round(h * 12.42, 2) for h in range(hours)]\n"
)
ROWS_AT_ONCE = 8192
"""Rows of the LM head whose logits are computed at once."""


@dataclass(frozen=True)
class SelfCheck:
    """The written checkpoint's logits against those of the plan on the source, both computed in float32.

    Attributes:
        tokens: positions compared.
        max_abs_error: the largest difference of two logits.
        max_abs_logit: the largest logit, for scale.
        agreement: share of positions with the same most likely token.
    """

    tokens: int
    max_abs_error: float
    max_abs_logit: float
    agreement: float


@torch.no_grad()
def self_check(source: Source, plan: DepthPlan, written: Source, tokenizer: PreTrainedTokenizerBase) -> SelfCheck:
    """Run `plan` on `source`, and `written` as it is, on a short text.

    Raises:
        ModelLoadError: tensors cannot be read, or the tokenizer is not the model's.
    """
    from truedepth.plan import DepthPlan as Plan

    ids = torch.tensor([tokenizer.encode(TEXT)])  # (1, T)
    rows = len(source.blank[f"{source.family.embedding}.weight"])
    if (highest := int(ids.max())) >= rows:
        raise ModelLoadError(
            f"the tokenizer of '{source.name}' gives token {highest}, but the model's embedding ends at {rows - 1}; "
            "put the tokenizer that the model was trained with beside its weights"
        )
    asked = _final_states(source, plan, ids)
    given = _final_states(written, Plan.full(plan.effective_depth), ids)
    return _compare(asked, given, _head(source), _head(written))


def _final_states(source: Source, plan: DepthPlan, ids: Tensor) -> Tensor:
    """The final norm's output: (1, T) to (T, D), float32."""
    from truedepth.models.rewire import apply
    from truedepth.models.streamed import streamed_model

    model = apply(streamed_model(source.config, _merging(source, plan)), plan)
    embedded = source.read(f"{source.family.embedding}.weight")[ids].float()  # (1, T, D)
    runner: Any = model.base_model
    states: Tensor = runner(inputs_embeds=embedded, use_cache=False).last_hidden_state
    return states[0]


def _merging(source: Source, plan: DepthPlan) -> Read:
    """Reads the mean of a merged stage's layers in the place of its first layer."""
    from truedepth.models.fuse import mean_of

    merged = {stage.layers[0]: stage.layers for stage in plan.stages if stage.merged}

    def read(name: str) -> Tensor:
        rest = name.removeprefix(f"{source.family.layers}.")
        number, _, inside = rest.partition(".")
        if rest == name or int(number) not in merged:
            return source.read(name)
        return mean_of([source.read(f"{source.family.layers}.{layer}.{inside}") for layer in merged[int(number)]])

    return read


def _head(source: Source) -> Tensor:
    """The rows that logits are made by: (V, D)."""
    own = f"{source.family.head}.weight"
    return source.read(own if own in source.blank else f"{source.family.embedding}.weight")


def _compare(asked: Tensor, given: Tensor, asked_head: Tensor, given_head: Tensor) -> SelfCheck:
    """Logits by some rows of each one's own head at a time."""
    errors, largest, best = 0.0, 0.0, []
    for asked_rows, given_rows in zip(asked_head.split(ROWS_AT_ONCE), given_head.split(ROWS_AT_ONCE), strict=True):
        logits = torch.stack([asked @ asked_rows.float().T, given @ given_rows.float().T])  # (2, T, rows)
        errors = max(errors, float((logits[0] - logits[1]).abs().max()))
        largest = max(largest, float(logits.abs().max()))
        best.append(logits.max(-1))
    values = torch.stack([top.values for top in best])  # (parts, 2, T)
    ids = torch.stack([top.indices + ROWS_AT_ONCE * part for part, top in enumerate(best)])
    chosen = ids.gather(0, values.argmax(0, keepdim=True))[0]  # (2, T)
    agreement = float((chosen[0] == chosen[1]).float().mean())
    return SelfCheck(len(asked), errors, largest, agreement)
