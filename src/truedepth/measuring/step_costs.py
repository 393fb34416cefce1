"""What plain decoding, drafting and verifying cost, as a sum over the parts of a step."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from truedepth.measuring.pairs import pairs_pay, stage_seconds
from truedepth.plan import DepthPlan, Form


class StepCosts(BaseModel):
    """Seconds of the parts of a decode step for one sequence. Measured by `truedepth.measuring.step_timing`.

    A plain step is a pass over one token. A round that drafts d tokens runs the draft's stages and head d times, the
    prefix that draft and target share once more for the last drafted token, and then the target's other stages and
    its head once, over d + 1 tokens (see `truedepth.engine.drafts.drafts.Draft`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_layers: int
    begin_seconds: float = Field(description="what each pass takes before its first layer")
    layer_seconds: dict[int, float] = Field(description="one layer, by the tokens of the pass")
    head_seconds: dict[int, float] = Field(description="final norm, LM head and choice, by the tokens of the pass")
    draft_head_seconds: dict[int, float] = Field(
        description="the same for one token with a draft vocabulary, by its size"
    )
    pair_seconds: dict[Form, float] = Field(
        description="two layers side by side over one token; twice a layer where no difference stood out of the noise"
    )

    def plain_seconds(self) -> float:
        """A plain step of the unmodified model, which yields one token."""
        return self.begin_seconds + self.num_layers * self.layer_seconds[1] + self.head_seconds[1]

    def round_seconds(self, plan: DepthPlan, vocabulary: int | None, num_speculative_tokens: int) -> float:
        """A round of drafting and verifying for the unmodified model.

        Args:
            plan: the draft.
            vocabulary: how many tokens its head may propose, a size that was measured; None: all.
            num_speculative_tokens: d, tokens drafted.
        """
        shared = plan.common_prefix(DepthPlan.full(plan.num_layers))
        prefix = self.begin_seconds + shared * self.layer_seconds[1]
        own = plan.stages[shared:]
        alone = sum(stage_seconds(stage, plan.form, self.layer_seconds[1], self.pair_seconds) for stage in own)
        head = self.head_seconds[1] if vocabulary is None else self.draft_head_seconds[vocabulary]
        rest = (self.num_layers - shared) * _between(self.layer_seconds, num_speculative_tokens + 1)
        verify = self.begin_seconds + rest + _between(self.head_seconds, num_speculative_tokens + 1)
        return num_speculative_tokens * (prefix + alone + head) + prefix + verify

    def worth(self, form: Form) -> bool:
        """Whether two layers side by side take less time than one after the other, noise aside."""
        return pairs_pay(form, self.layer_seconds[1], self.pair_seconds)


def _between(seconds: Mapping[int, float], tokens: int) -> float:
    """On the line between the two nearest numbers of tokens that were measured."""
    counts = sorted(seconds)
    at = min(max(bisect_left(counts, tokens), 1), len(counts) - 1)
    low, high = counts[at - 1], counts[at]
    return seconds[low] + (seconds[high] - seconds[low]) * (tokens - low) / (high - low)
