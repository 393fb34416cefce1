"""The page of a search for a draft."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from truedepth.report.format import times
from truedepth.report.lossless import labels
from truedepth.report.lossless.charts import agreement_chart, speed_chart
from truedepth.report.page import CostPart, cost_parts, render_page

if TYPE_CHECKING:
    from truedepth.measuring.step_costs import StepCosts
    from truedepth.search.draft_results import LosslessResults


def render_lossless(results: LosslessResults, folder: Path) -> str:
    """The page as a string; `folder` is what its command lines call the run."""
    return render_page(
        "lossless.html.j2",
        results=results,
        best=labels.candidate_of(results, results.best.draft),
        labels=labels,
        rows=labels.rows(results),
        timed=[*results.finalists, *results.final],
        costs=_costs(results.costs),
        commands=_commands(results, folder) if results.pays else (),
        speed_chart=speed_chart(results),
        agreement_chart=agreement_chart(results),
    )


def _costs(costs: StepCosts) -> tuple[CostPart, ...]:
    layer, head = costs.layer_seconds, costs.head_seconds
    return cost_parts(
        [
            ("A plain step", costs.plain_seconds(), ""),
            ("All layers, one token", costs.num_layers * layer[1], ""),
            *(
                (f"All layers, {count} tokens", costs.num_layers * seconds, f"{times(seconds / layer[1])} one token")
                for count, seconds in sorted(layer.items())[1:]
            ),
            ("Norm, head and choice, one token", head[1], ""),
            *(
                (f"The same, {size:,} tokens of the vocabulary", seconds, f"{times(seconds / head[1])} the whole head")
                for size, seconds in sorted(costs.draft_head_seconds.items(), reverse=True)
            ),
            *(
                (f"Two layers side by side, form {form}", seconds, f"{times(seconds / layer[1])} one layer")
                for form, seconds in costs.pair_seconds.items()
            ),
        ]
    )


def _commands(results: LosslessResults, folder: Path) -> tuple[tuple[str, str], ...]:
    model, run = shlex.quote(results.model.name), shlex.quote(folder.as_posix())
    options = f"--draft {run}"
    if results.best.num_speculative_tokens is not None:
        options += f" --draft-length {results.best.num_speculative_tokens}"
    return (
        ("Write with it", f"truedepth generate {model} {options} --prompt 'Why is the sky blue?' --stats"),
        ("See the result in a terminal", f"truedepth show {run}"),
    )
