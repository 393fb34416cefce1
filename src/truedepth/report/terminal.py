"""Plans and results in a terminal. Symbols carry the meaning; colour only repeats it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from truedepth.plan import DepthPlan
from truedepth.report import format as wording
from truedepth.report.comparison import ComparisonRow, comparison
from truedepth.report.layout import ROLE_WORDS, Role, Slot, slots

if TYPE_CHECKING:
    from truedepth.engine.sampling.result import GenerationResult
    from truedepth.search.results import Results

_STYLES: dict[Role, str] = {
    "alone": "bold",
    "parallel": "bold yellow",
    "merged": "bold magenta",
    "skipped": "dim",
}
_UNICODE: dict[Role, tuple[str, str, str, str, str, str]] = {
    "parallel": ("╭", "╮", "│", "│", "╰", "╯"),
    "merged": ("╔", "╗", "║", "║", "╚", "╝"),
}
_ASCII: dict[Role, tuple[str, str, str, str, str, str]] = {
    "parallel": ("/", "\\", "|", "|", "\\", "/"),
    "merged": ("+", "+", "+", "+", "+", "+"),
}
_ORDER: tuple[Role, ...] = ("alone", "parallel", "merged", "skipped")
_MAX_HEIGHT = 4  # layers of a group above each other, before it grows another column


def draw_plan(plan: DepthPlan) -> RenderableType:
    """A drawing of the plan: its stages in order, groups as stacks, skipped layers struck; with a legend."""
    return _Drawing(plan)


@dataclass(frozen=True, slots=True)
class _Drawing:
    """The drawing, laid out when the width of the console is known."""

    plan: DepthPlan

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        blocks = [_block(slot, self.plan.num_layers, options.ascii_only) for slot in slots(self.plan)]
        for line in _lines(blocks, options.max_width):
            yield from _stacked(line)
        yield _legend({slot.role for slot in slots(self.plan)}, options.ascii_only)
        yield Text(_summary(self.plan))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(40, options.max_width), options.max_width)


def _block(slot: Slot, num_layers: int, ascii_only: bool) -> list[Text]:
    """One slot as lines of text of the same width."""
    digits = max(2, len(str(num_layers - 1)))
    style = _STYLES[slot.role]
    numbers = [f"{layer:>{digits}}" for layer in slot.layers]
    if slot.role == "alone":
        return [Text(f"[{numbers[0]}]", style)]
    if slot.role == "skipped":
        strike = "-" if ascii_only else "╌"
        return [Text(f"{strike}{numbers[0]}{strike}", style)]
    height = min(len(numbers), _MAX_HEIGHT)
    rows = [" ".join(numbers[start::height]) for start in range(height)]
    edges = (_ASCII if ascii_only else _UNICODE)[slot.role]
    lines = []
    for index, row in enumerate(rows):
        at = 0 if index == 0 else 4 if index == height - 1 else 2
        lines.append(Text(f"{edges[at]}{row:<{len(rows[0])}}{edges[at + 1]}", style))
    return lines


def _lines(blocks: Sequence[list[Text]], width: int) -> Iterator[list[list[Text]]]:
    """Blocks that fit beside each other into the width."""
    line: list[list[Text]] = []
    used = 0
    for block in blocks:
        if line and used + len(block[0]) > width:
            yield line
            line, used = [], 0
        line.append(block)
        used += len(block[0])
    if line:
        yield line


def _stacked(line: Sequence[list[Text]]) -> Iterator[Text]:
    """Blocks beside each other, aligned at the top."""
    for row in range(max(len(block) for block in line)):
        text = Text(no_wrap=True)
        for block in line:
            text.append_text(block[row] if row < len(block) else Text(" " * len(block[0])))
        text.rstrip()
        yield text


def _legend(shown: set[Role], ascii_only: bool) -> Text:
    samples: dict[Role, str] = {"alone": "[n]", "skipped": "-n-" if ascii_only else "╌n╌"}
    for role, edges in (_ASCII if ascii_only else _UNICODE).items():
        samples[role] = f"{edges[0]}n{edges[1]}{edges[4]}n{edges[5]}"
    legend = Text()
    for role in _ORDER:
        if role in shown:
            legend.append("   " if legend else "").append(samples[role], _STYLES[role])
            legend.append(f" {ROLE_WORDS[role]}", "dim")
    return legend


def _summary(plan: DepthPlan) -> str:
    parts = [wording.depth(plan)]
    if plan.groups:
        parts.append(f"form {plan.form}")
    if plan.prefill == "full":
        parts.append("the prompt runs every layer")
    return ", ".join(parts)


def results_table(results: Results) -> RenderableType:
    """The outcome of a run: its headline and the table of figures, readable at 80 columns."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("", no_wrap=True)
    for title in ("layers", "stages", "speedup", "perplexity", "KL (nats)", "agreement"):
        table.add_column(title, justify="right", no_wrap=True)
    rows = comparison(results)
    for row in rows:
        table.add_row(*_cells(row), style="bold green" if row.kind == "plan" else "")
    parts: list[RenderableType] = [
        Text(wording.headline(results), "bold"),
        Text(_detail(results)),
        Text(),
        table,
    ]
    if not all(row.measured for row in rows):
        parts.append(Text("~ predicted by the cost model, not measured", "dim"))
    return Group(*parts)


def _detail(results: Results) -> str:
    parts = (
        wording.asked(results),
        f"Speedup: {wording.speed_range(results)}.",
        wording.credit(results),
        results.cost.note,
    )
    return " ".join(part for part in parts if part)


def _cells(row: ComparisonRow) -> tuple[Text, ...]:
    speedup = wording.times(row.speedup)
    figures = (
        str(len(row.plan.layers_used)),
        str(row.plan.effective_depth),
        speedup if row.measured else f"~{speedup}",
        wording.perplexity(row.perplexity),
        wording.number(row.kl),
        wording.percent(row.agreement, 1),
    )
    return (Text(row.name), *map(Text, figures))


def decoding_table(result: GenerationResult) -> RenderableType:
    """Where the time of a text went, and what of its draft was accepted."""
    timings = result.timings
    parts = {
        "prompt": timings.prefill,
        "drafting": timings.draft,
        "verifying": timings.verify,
        "plain steps": timings.plain,
    }
    parts["other"] = max(0.0, timings.total - sum(parts.values()))
    times = Table("time", box=None, pad_edge=False, header_style="dim")
    times.add_column("", justify="right")
    times.add_column("share", justify="right")
    for name, seconds in {**parts, "total": timings.total}.items():
        times.add_row(name, wording.duration(seconds), wording.percent(seconds / (timings.total or 1)))
    rounds = sum(step.drafted > 0 for step in result.steps)
    return Group(
        times, Text(f"{rounds} rounds of drafting, {len(result.steps) - rounds} plain steps"), *_places(result)
    )


def _places(result: GenerationResult) -> Iterator[Table]:
    """How many of the first drafted tokens were accepted, of the second, ..."""
    shares = result.acceptance_by_position
    if not shares:
        return
    table = Table("drafted token", box=None, pad_edge=False, header_style="dim")
    table.add_column("drafted", justify="right")
    table.add_column("accepted", justify="right")
    for place, share in enumerate(shares, 1):
        drafted = sum(step.drafted >= place for step in result.steps)
        table.add_row(str(place), str(drafted), wording.percent(share))
    yield table
