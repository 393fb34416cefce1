"""The figures of a training: how they are named, averaged, and written down while it runs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from truedepth.errors import OutputError
from truedepth.records.files import output_error, write_atomic
from truedepth.records.messages import one_line

FIGURES_FILE = "training.jsonl"

ExitFigure = Literal["loss", "agreement"]

_EXIT = re.compile(r"(?:eval_)?(loss|agreement)_exit_(\d+)")
_POSITION = re.compile(r"(?:eval_)?(loss|agreement)_position_(\d+)")


def exit_name(kind: ExitFigure, exit_layers: int) -> str:
    """The name of a figure of the exit after the first `exit_layers` layers, such as `loss_exit_8`.

    `agreement` is the share of tokens for which the exit's most likely next token is the last layer's.
    """
    return f"{kind}_exit_{exit_layers}"


def position_name(kind: ExitFigure, position: int) -> str:
    """The name of a figure of the tokens drafted at a position, such as `loss_position_1` for the first ones.

    `agreement` is the share of tokens that the last layer chose which the head drafts, given those before them.
    """
    return f"{kind}_position_{position}"


def position_of(name: str) -> tuple[str, int] | None:
    """What and of which drafted position a figure is, for names made by `position_name` (with or without `eval_`)."""
    found = _POSITION.fullmatch(name)
    return (found[1], int(found[2])) if found else None


def exit_of(name: str) -> tuple[str, int] | None:
    """What and of which exit a figure is, for the names that `exit_name` makes (with or without `eval_`)."""
    found = _EXIT.fullmatch(name)
    return (found[1], int(found[2])) if found else None


@dataclass(frozen=True)
class Figures:
    """What was logged at once.

    Attributes:
        step: optimizer steps made so far.
        epoch: passes over the rows so far.
        seconds: since the training began, over all its resumed parts.
        values: by name; those that begin with `eval_` are of held-out text.
    """

    step: int
    epoch: float
    seconds: float
    values: Mapping[str, float]

    def to_line(self) -> str:
        return json.dumps(
            {"step": self.step, "epoch": self.epoch, "seconds": round(self.seconds, 3), "values": dict(self.values)}
        )


@dataclass
class Meter:
    """Means over the steps since the last log. Adding up floats in a fixed order, it survives a resume exactly."""

    sums: dict[str, float] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    _step: dict[str, float] = field(default_factory=dict)

    def add(self, values: Mapping[str, float]) -> None:
        """Add the figures of one micro-batch; those of a step's micro-batches add up."""
        for name, value in values.items():
            self._step[name] = self._step.get(name, 0.0) + value

    def end_step(self) -> None:
        """The step's micro-batches are all there."""
        for name, value in self._step.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.steps[name] = self.steps.get(name, 0) + 1
        self._step = {}

    def means(self) -> dict[str, float]:
        """Of each figure, over the steps that had it."""
        return {name: total / self.steps[name] for name, total in self.sums.items()}

    def reset(self) -> None:
        self.sums, self.steps = {}, {}


def read_figures(path: Path) -> list[Figures]:
    """All figures of a file, in their order; a line that was cut off is left out. None where there is no file."""
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise output_error(path, error) from error
    try:
        lines: list[dict[str, Any]] = [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]
        return [Figures(**line) for line in lines]
    except (ValueError, TypeError, RecursionError) as error:
        raise OutputError(f"{path} is damaged ({one_line(error)}); train again in another folder") from None


class FiguresFile:
    """`training.jsonl`: a JSON line for each `Figures`, on disk as soon as they are known.

    Args:
        step: what was logged after this step is deleted, since a training resumed from there logs it again.

    Raises:
        OutputError: the file cannot be read or written.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        kept = [figures for figures in read_figures(path) if figures.step <= step]
        self.seconds = kept[-1].seconds if kept else 0.0
        write_atomic(path, "".join(f"{figures.to_line()}\n" for figures in kept))

    def write(self, figures: Figures) -> None:
        """Add a line."""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(figures.to_line() + "\n")
        except OSError as error:
            raise output_error(self._path, error) from error
