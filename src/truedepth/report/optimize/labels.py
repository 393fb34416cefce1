"""The findings of the main job in plain sentences, the same in the HTML report and in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from truedepth.report.format import depth, number, percent, perplexity, times

if TYPE_CHECKING:
    from truedepth.search.plan_results import Results


def headline(results: Results) -> str:
    """The outcome in one sentence."""
    plan = results.plan.to_plan()
    name = results.model.name
    if plan.is_full:
        return f"{name} stays as it is: the search found no change worth making."
    if results.speedup.measured is None:
        return (
            f"{name} should decode {results.speedup.predicted:.2f} times as fast on {results.cost.source} "
            f"with {depth(plan)}."
        )
    return f"{name} decodes {results.speedup.measured:.2f} times as fast with {depth(plan)}."


def asked(results: Results) -> str:
    """What the user asked for, and whether it was reached."""
    target = results.target
    if target.kind == "speedup":
        return f"You asked for {target.value:.2f} times the decoding speed. {_reached(results)}"
    if target.kind == "max_perplexity_ratio":
        ratio = results.perplexity.plan / results.perplexity.base
        return (
            f"You asked for the fastest plan with at most {target.value:.2f} times the perplexity. "
            f"On text that the search never saw, it has {times(ratio)}."
        )
    return f"You asked for {target.value:.0f} stages."


def _reached(results: Results) -> str:
    measured = results.speedup.measured
    if measured is None:
        return f"The cost model predicts {times(results.speedup.predicted)}; it was not measured here."
    shortfall = 1 - measured / results.target.value
    if shortfall <= 0:
        return "The measured plan reaches it."
    return f"The measured plan falls {percent(shortfall, 1)} short of it."


def credit(results: Results) -> str:
    """The published methods that come to the same plan, in a sentence; empty if none does."""
    plan = results.plan.to_plan()
    same = [
        peer.method
        for peer in results.peers
        if peer.notation == plan.notation and (peer.form == plan.form or not plan.groups)
    ]
    return f"Here {' and '.join(same)} {'come' if len(same) > 1 else 'comes'} to the same plan." if same else ""


def speed_range(results: Results) -> str:
    """The lowest and highest ratio of a pair of runs, or why there is none."""
    low, high = results.speedup.low, results.speedup.high
    if results.speedup.measured is None:
        return f"predicted for {results.cost.source}, not measured"
    if low is None or high is None:
        return "measured"
    return f"{low:.2f} to {high:.2f} from run to run"


def quality(results: Results) -> str:
    """What it cost in quality, in two sentences."""
    base, plan = results.perplexity.base, results.perplexity.plan
    return (
        f"Perplexity goes from {perplexity(base)} to {perplexity(plan)} ({times(plan / base)}). "
        f"The most likely next token stays the same for {percent(results.agreement)} of the tokens, and the "
        f"predictions move by {number(results.kl)} nats a token (KL divergence)."
    )
