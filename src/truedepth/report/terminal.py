"""Plans and tables in a terminal. Symbols carry the meaning; colour only repeats it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from truedepth.plan import DepthPlan
from truedepth.report.format import depth, duration, percent
from truedepth.report.layout import ROLE_LABELS, Role, Slot, slots

if TYPE_CHECKING:
    from truedepth.engine.sampling.result import GenerationResult

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


def bare_table(title: str, *figures: str) -> Table:
    """A table without lines: what a row is of on the left, its figures on the right."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(title, no_wrap=True)
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    return table


@dataclass(frozen=True, slots=True)
class PlanDrawing:
    """A plan's stages in order, groups as stacks, skipped layers struck; laid out when the console's width is known."""

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
            legend.append(f" {ROLE_LABELS[role]}", "dim")
    return legend


def _summary(plan: DepthPlan) -> str:
    parts = [depth(plan)]
    if plan.groups:
        parts.append(f"form {plan.form}")
    if plan.prefill == "full":
        parts.append("the prompt runs every layer")
    return ", ".join(parts)


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
    times = bare_table("time", "", "share")
    for name, seconds in {**parts, "total": timings.total}.items():
        times.add_row(name, duration(seconds), percent(seconds / (timings.total or 1)))
    rounds = sum(step.drafted > 0 for step in result.steps)
    return Group(
        times, Text(f"{rounds} rounds of drafting, {len(result.steps) - rounds} plain steps"), *_positions(result)
    )


def _positions(result: GenerationResult) -> Iterator[Table]:
    """How many of the first drafted tokens were accepted, of the second, ..."""
    shares = result.acceptance_by_position
    if not shares:
        return
    table = bare_table("drafted token", "drafted", "accepted")
    for position, share in enumerate(shares, 1):
        drafted = sum(step.drafted >= position for step in result.steps)
        table.add_row(str(position), str(drafted), percent(share))
    yield table
