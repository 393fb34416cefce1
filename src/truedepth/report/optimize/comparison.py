"""The rows of tables and charts that set the plan beside the unmodified model and the published methods."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from truedepth.plan import DepthPlan

if TYPE_CHECKING:
    from truedepth.search.plan_results import Results


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """One plan with its figures.

    Attributes:
        kind: the unmodified model, the plan that was found, or a published method.
        name: what the row is called.
        plan: the plan.
        speedup: decode tokens per second over those of the unmodified model.
        measured: whether `speedup` was measured; otherwise the cost model predicted it.
        perplexity: on the test split.
        ratio: `perplexity` over that of the unmodified model; not a number where that is infinite.
        kl: mean KL(base || plan) in nats a token.
        agreement: share of tokens whose most likely next token is unchanged, 0 to 1.
    """

    kind: Literal["base", "plan", "peer"]
    name: str
    plan: DepthPlan
    speedup: float
    measured: bool
    perplexity: float
    ratio: float
    kl: float
    agreement: float


def comparison(results: Results) -> tuple[ComparisonRow, ...]:
    """The unmodified model, the plan, then the published methods from the best perplexity to the worst."""
    base = results.perplexity.base
    speedup = results.speedup

    def ratio(perplexity: float) -> float:
        return perplexity / base if math.isfinite(base) else math.nan

    unmodified = ComparisonRow(
        "base", "unmodified", DepthPlan.full(results.model.num_layers), 1.0, True, base, 1.0, 0.0, 1.0
    )
    found = ComparisonRow(
        "plan",
        "this plan",
        results.plan.to_plan(),
        speedup.predicted if speedup.measured is None else speedup.measured,
        speedup.measured is not None,
        results.perplexity.plan,
        ratio(results.perplexity.plan),
        results.kl,
        results.agreement,
    )
    peers = [
        ComparisonRow(
            "peer",
            peer.method,
            DepthPlan.parse(peer.notation, results.model.num_layers, peer.form, peer.prefill),
            peer.speedup,
            peer.measured,
            peer.perplexity,
            ratio(peer.perplexity),
            peer.kl,
            peer.agreement,
        )
        for peer in results.peers
    ]
    return (unmodified, found, *sorted(peers, key=lambda row: row.perplexity))
