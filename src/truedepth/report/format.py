"""Figures and findings in plain words, the same in the HTML report and in the terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from truedepth.plan import DepthPlan
    from truedepth.search.results import Results

TIMES = "\N{MULTIPLICATION SIGN}"


def number(value: float, digits: int = 3) -> str:
    """A figure of any size, short: 14.9, 1,234, 1.2e9, infinite."""
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if exponent >= 6 or exponent < -4:
        return f"{value / 10.0**exponent:.1f}e{exponent}"
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def perplexity(value: float) -> str:
    """A perplexity to four digits."""
    return number(value, 4)


def times(value: float) -> str:
    """A ratio such as 1.27 with a multiplication sign; two decimals up to 100."""
    return f"{value:.2f}{TIMES}" if abs(value) < 100 else f"{number(value)}{TIMES}"


def percent(share: float, decimals: int = 0) -> str:
    """A share from 0 to 1 in percent."""
    return f"{100 * share:.{decimals}f} %"


def size(count: float) -> str:
    """Bytes, in decimal units: 538 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{number(count)} {unit}"
        count /= 1000
    return f"{number(count)} TB"


def duration(seconds: float) -> str:
    """A time from nanoseconds to hours: 8.12 ms, 3 min 12 s."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
    if seconds >= 60:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{number(seconds * factor)} {unit}"
    return f"{number(seconds * 1e6)} µs"


def depth(plan: DepthPlan) -> str:
    """What a plan makes of the layers: 'all 30 layers in 24 stages', '24 of 30 layers'."""
    used = len(plan.layers_used)
    layers = f"{used} of {plan.num_layers} layers" if plan.layers_skipped else f"all {used} layers"
    return layers if plan.effective_depth == used else f"{layers} in {plan.effective_depth} stages"


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
