"""What both jobs of `optimize` share: a folder with recipe and journal, the model, the text, and the results' facts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from truedepth.evaluation.texts import Sizes, TextRecord, Texts, read_texts
from truedepth.measuring.bandwidth import read_bandwidth
from truedepth.measuring.machine import MachineRecord, machine_record
from truedepth.models.loading.load import LoadedModel, load
from truedepth.models.record import ModelRecord
from truedepth.records.files import prepare_output, write_atomic
from truedepth.records.journal import Journal
from truedepth.records.progress import Progress
from truedepth.records.recipe import RECIPE_FILE
from truedepth.records.schema import ResultsFile
from truedepth.records.version import VERSION
from truedepth.search.recipe import LosslessRecipe, Recipe

JOURNAL_FILE = "journal.jsonl"

AnyRecipe = TypeVar("AnyRecipe", Recipe, LosslessRecipe)


@dataclass(frozen=True)
class Job(Generic[AnyRecipe]):
    """A job with all that it works on. Made by `open_job`.

    Everything that takes time is kept in the journal as soon as it is known, so a job that was interrupted goes on from
    there and ends with the same results.
    """

    recipe: AnyRecipe
    folder: Path
    journal: Journal
    loaded: LoadedModel
    progress: Progress

    @cached_property
    def texts(self) -> Texts:
        """The text of the recipe.

        Raises:
            TextError: it cannot be read, or is too short.
        """
        sizes = Sizes(**self.recipe.windows.model_dump())
        return read_texts(self.recipe.text, self.loaded.tokenizer, sizes, self.recipe.seed)

    def bandwidth(self, measure: Callable[[torch.device], float] = read_bandwidth) -> float:
        """Bytes per second at which the model's device reads its memory, measured once.

        Args:
            measure: what measures it.
        """
        device = self.loaded.model.device
        found: float = self.journal.remember("machine", "bandwidth", lambda: measure(device))
        return found

    def machine(self, measure: Callable[[torch.device], float] = read_bandwidth) -> MachineRecord:
        """This machine; see `bandwidth`."""
        return machine_record(self.loaded.model.device, self.bandwidth(measure))

    def facts(self) -> dict[str, Any]:
        """The fields that the results of both jobs have, but for the machine."""
        return {
            "truedepth_version": VERSION,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": self.journal.seconds,
            "model": ModelRecord.of(self.loaded.model, self.recipe.model),
            "text": TextRecord.of(self.texts),
        }

    def save(self, results: ResultsFile, name: str) -> None:
        """Write the results, the last thing that a job does.

        Raises:
            OutputError: the file cannot be written.
        """
        write_atomic(self.folder / name, results.model_dump_json(indent=2) + "\n")


def open_job(recipe: AnyRecipe, folder: Path, progress: Progress, *, resume: bool) -> Job[AnyRecipe]:
    """Prepare the folder, with the recipe in it, and load the model.

    Args:
        folder: created if it is missing; it must be empty unless `resume`.
        resume: go on with the run that `folder` holds, which must have had the same recipe.

    Raises:
        TruedepthError: the folder cannot be used, or the model cannot be loaded.
    """
    prepare_output(folder, resume=resume)
    journal = Journal(folder / JOURNAL_FILE, {"version": VERSION, **recipe.to_dict()})
    recipe.save(folder / RECIPE_FILE)
    with progress("Loading the model", 1) as advance:
        loaded = load(
            recipe.model, dtype=recipe.dtype, device=recipe.device, trust_remote_code=recipe.trust_remote_code
        )
        advance()
    return Job(recipe, folder, journal, loaded, progress)
