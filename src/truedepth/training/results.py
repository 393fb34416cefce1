"""The schema of `training-results.json`, written by a training and read by its report and anything else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from truedepth.measuring.machine import MachineRecord
from truedepth.models.record import ModelRecord
from truedepth.records.schema import Record, ResultsFile
from truedepth.training.trainer.figures import Figures

if TYPE_CHECKING:
    from truedepth.training.data.rows import TokenRows

SCHEMA_VERSION = 2
TRAINING_FILE = "training-results.json"


class RowsRecord(Record):
    """A text as it was trained on, or judged by."""

    sources: list[str] = Field(description="files and datasets")
    items: int
    rows: int
    tokens: int = Field(description="of all rows, filling left out")
    loss_tokens: int = Field(description="those that the loss is over")

    @classmethod
    def of(cls, rows: TokenRows) -> RowsRecord:
        return cls(
            sources=list(rows.items.names),
            items=len(rows.items),
            rows=len(rows),
            tokens=int(rows.lengths.sum()),
            loss_tokens=int(rows.items.loss_mask.sum()),
        )


class FiguresRecord(Record):
    """See `truedepth.training.trainer.figures.Figures`."""

    step: int
    epoch: float
    seconds: float
    values: dict[str, float]

    @classmethod
    def of(cls, figures: Figures) -> FiguresRecord:
        return cls(step=figures.step, epoch=figures.epoch, seconds=figures.seconds, values=dict(figures.values))


class ProductRecord(Record):
    """What was made."""

    description: str = Field(description="in a few words, such as 'the trained model'")
    path: str = Field(description="within the folder of the training")
    figures: dict[str, float] = Field(description="what the kind of training has measured of it, by name")
    commands: list[tuple[str, str]] = Field(description="what can be done with it, and the command line that does it")


class TrainingResults(ResultsFile):
    described_as: ClassVar[str] = f"a {TRAINING_FILE} of schema {SCHEMA_VERSION}"
    written_by: ClassVar[str] = "truedepth train"

    schema_version: int = SCHEMA_VERSION
    truedepth_version: str
    created: str = Field(description="ISO 8601, UTC")
    seconds: float = Field(description="wall time of the training, over all its resumed parts")
    kind: str
    recipe: dict[str, Any]
    model: ModelRecord = Field(description="before the training")
    machine: MachineRecord
    ranks: int
    trained_parameters: int
    steps: int
    train: RowsRecord
    held_out: RowsRecord | None
    history: list[FiguresRecord] = Field(description="all that was logged, as in `training.jsonl`")
    product: ProductRecord

    def series(self, name: str) -> list[tuple[int, float]]:
        """Steps and values of a figure."""
        return [(figures.step, figures.values[name]) for figures in self.history if name in figures.values]
