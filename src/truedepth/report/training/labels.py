"""The findings of a training in plain sentences and rows of tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from truedepth.report.format import duration, number, percent
from truedepth.training.trainer.figures import exit_name, exit_of, position_name, position_of

if TYPE_CHECKING:
    from truedepth.training.results import TrainingResults


@dataclass(frozen=True, slots=True)
class Change:
    """A figure when the training began and when it ended; both the same where it was taken once."""

    first: float
    last: float


@dataclass(frozen=True, slots=True)
class FigureRow:
    """What became of one exit, of the tokens that a head drafts at one position, or of the whole loss (neither)."""

    title: str
    loss: Change | None
    agreement: Change | None = None
    layers: int | None = None
    position: int | None = None


def exits(results: TrainingResults) -> list[int]:
    """All exits that have figures, the shallowest first."""
    return _numbers(results, exit_of)


def positions(results: TrainingResults) -> list[int]:
    """All drafted positions that have figures, the first ones first."""
    return _numbers(results, position_of)


def _numbers(results: TrainingResults, of: Callable[[str], tuple[str, int] | None]) -> list[int]:
    names = {name for figures in results.history for name in figures.values}
    return sorted({found[1] for name in names if (found := of(name))})


def position_title(position: int) -> str:
    """A drafted position as it is called in charts and tables."""
    return f"drafted token {position}"


def exit_title(layers: int | None, results: TrainingResults) -> str:
    """An exit as it is called in charts and tables; None is the loss that is trained on."""
    if layers is None:
        return "loss of the training"
    return "last layer" if layers == results.model.num_layers else f"exit {layers}"


def judged(results: TrainingResults) -> bool:
    """Whether there are figures of held-out text."""
    return bool(results.series("eval_loss"))


def loss_unit(results: TrainingResults) -> str:
    """What the loss of the training is counted in."""
    return "weighted sum of the drafted positions" if len(positions(results)) > 1 else "nats a token"


def change(results: TrainingResults, name: str) -> Change | None:
    """How a figure changed: that of held-out text where there is any."""
    points = results.series(f"eval_{name}") or results.series(name)
    return Change(points[0][1], points[-1][1]) if points else None


def rows(results: TrainingResults) -> list[FigureRow]:
    """The whole loss, then each exit and each drafted position."""
    found = [FigureRow(exit_title(None, results), change(results, "loss"))]
    for layers in exits(results):
        loss, agreement = (change(results, exit_name(kind, layers)) for kind in ("loss", "agreement"))
        found.append(FigureRow(exit_title(layers, results), loss, agreement, layers=layers))
    for position in positions(results):
        loss, agreement = (change(results, position_name(kind, position)) for kind in ("loss", "agreement"))
        found.append(FigureRow(position_title(position), loss, agreement, position=position))
    return found


def headline(results: TrainingResults) -> str:
    """The outcome in one sentence."""
    text = "held-out text" if judged(results) else "training text"
    loss = change(results, "loss")
    if loss is None:
        return f"{results.model.name} was trained for {steps(results)} ({results.kind})."
    return (
        f"{results.model.name} was trained for {steps(results)} ({results.kind}): "
        f"its loss on {text} went from {number(loss.first)} to {number(loss.last)}."
    )


def finding(results: TrainingResults) -> str:
    """What became of the exits, or of what a head drafts, in a sentence; empty where there are neither."""
    drafted = [row for row in rows(results) if row.agreement and row.position == 1]
    if drafted and drafted[0].agreement:
        changed = drafted[0].agreement
        return (
            f"Of the tokens that the model chose, the head drafts {percent(changed.last)} right at the first position "
            f"({percent(changed.first)} before)."
        )
    agreeing = [row for row in rows(results) if row.agreement and row.layers not in (None, results.model.num_layers)]
    if not agreeing:
        return ""
    told = ", ".join(
        f"after {row.layers} of {results.model.num_layers} layers {percent(row.agreement.first)} before and "
        f"{percent(row.agreement.last)} after"
        for row in agreeing
        if row.agreement
    )
    return f"How often an exit's most likely next token is the last layer's: {told}."


def steps(results: TrainingResults) -> str:
    return "one step" if results.steps == 1 else f"{results.steps:,} steps"


def tokens_per_second(results: TrainingResults) -> float:
    """The median of what was logged; not a number where nothing was."""
    values = sorted(value for _, value in results.series("tokens_per_second"))
    return values[len(values) // 2] if values else math.nan


def trained_share(results: TrainingResults) -> str:
    """How much of the model was trained."""
    share = results.trained_parameters / results.model.parameters
    return "all" if share == 1 else percent(share, 0 if share >= 0.1 else 2)


def took(results: TrainingResults) -> str:
    ranks = "" if results.ranks == 1 else f" on {results.ranks} ranks"
    return f"{duration(results.seconds)}{ranks}"
