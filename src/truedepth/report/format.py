"""How figures are written, the same in the HTML report and in the terminal."""

from __future__ import annotations

import math
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from truedepth.plan import DepthPlan

TIMES_SIGN = "\N{MULTIPLICATION SIGN}"


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
    return f"{value:.2f}{TIMES_SIGN}" if abs(value) < 100 else f"{number(value)}{TIMES_SIGN}"


def per_second(value: float) -> str:
    """A rate of tokens."""
    return f"{number(value)} tokens/s"


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


def date(created: str) -> str:
    """A moment in ISO 8601 for people; anything else as it is."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def depth(plan: DepthPlan) -> str:
    """What a plan makes of the layers: 'all 30 layers in 24 stages', '24 of 30 layers'."""
    used = len(plan.layers_used)
    layers = f"{used} of {plan.num_layers} layers" if plan.layers_skipped else f"all {used} layers"
    return layers if plan.effective_depth == used else f"{layers} in {plan.effective_depth} stages"
