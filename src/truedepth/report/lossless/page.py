"""The report of a search for a draft: one HTML file that needs no network, for a screen or for paper."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from truedepth.records.files import write_atomic
from truedepth.report.format import times
from truedepth.report.lossless import labels as words
from truedepth.report.lossless.charts import agreement_chart, speed_chart
from truedepth.report.page import CostPart, chart_data, cost_parts, readable_date, render_page

if TYPE_CHECKING:
    from truedepth.measuring.step_costs import StepCosts
    from truedepth.search.lossless_results import LosslessResults


def write_lossless_report(results: LosslessResults, path: Path) -> None:
    """Write the report of a run as one self-contained HTML file.

    The command lines in it use the folder of `path`.

    Raises:
        OutputError: the file cannot be written.
    """
    write_atomic(path, render_lossless_report(results, path.parent))


def render_lossless_report(results: LosslessResults, folder: Path) -> str:
    """The report as a string; `folder` is what its command lines call the run."""
    return render_page(
        "lossless.html.j2",
        results=results,
        best=words.candidate_of(results, results.best.draft),
        words=words,
        rows=words.rows(results),
        timed=[*results.finalists, *results.final],
        costs=_costs(results.costs),
        commands=_commands(results, folder) if results.pays else (),
        created=readable_date(results.created),
        speed_chart=chart_data(speed_chart(results)),
        agreement_chart=chart_data(agreement_chart(results)),
    )


def _costs(costs: StepCosts) -> tuple[CostPart, ...]:
    layer, head = costs.layer_seconds, costs.head_seconds
    several = sorted(layer)[1:]
    plain = costs.plain_seconds()
    all_layers = costs.num_layers * layer[1]
    figures = [("A plain step", plain, "")]
    figures += [("All layers, one token", all_layers, "")]
    figures += [
        (f"All layers, {count} tokens", costs.num_layers * layer[count], f"{times(layer[count] / layer[1])} one token")
        for count in several
    ]
    figures += [("Norm, head and choice, one token", head[1], "")]
    figures += [
        (f"The same, {size:,} tokens of the vocabulary", seconds, f"{times(seconds / head[1])} the whole head")
        for size, seconds in sorted(costs.draft_head_seconds.items(), reverse=True)
    ]
    figures += [
        (f"Two layers side by side, form {form}", seconds, f"{times(seconds / layer[1])} one layer")
        for form, seconds in costs.pair_seconds.items()
    ]
    return cost_parts(figures)


def _commands(results: LosslessResults, folder: Path) -> tuple[tuple[str, str], ...]:
    model, run = shlex.quote(results.model.name), shlex.quote(folder.as_posix())
    options = f"--draft {run}"
    if results.best.num_speculative_tokens is not None:
        options += f" --draft-length {results.best.num_speculative_tokens}"
    return (
        ("Write with it", f"truedepth generate {model} {options} --prompt 'Why is the sky blue?' --stats"),
        ("See the result in a terminal", f"truedepth show {run}"),
    )
