"""Checkpoints of a training that are whole or not there at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint, rotate_checkpoints

from truedepth.errors import OutputError, TrainingError
from truedepth.records.files import output_error, usual_modes
from truedepth.records.messages import one_line
from truedepth.training.trainer.figures import Meter

METER_FILE = "figures.json"


def checkpoint_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies, by the convention of transformers."""
    return folder / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step."""
    found = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    return Path(found) if found else None


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def checkpoint_of(folder: Path, resume: str | bool | None) -> Path | None:
    """What a training resumes from: a checkpoint that was named, the last one (True), or none.

    Raises:
        TrainingError: there is none.
    """
    if not resume:
        return None
    checkpoint = last_checkpoint(folder) if resume is True else Path(str(resume))
    if checkpoint is None or not checkpoint.is_dir():
        raise TrainingError(f"{checkpoint or folder} has no checkpoint to resume from; start without resuming")
    return checkpoint


def aside_folder(folder: Path, step: int) -> Path:
    """Where a checkpoint is written before it is whole."""
    return folder / f".{PREFIX_CHECKPOINT_DIR}-{step}.part"


@contextmanager
def named_failures(aside: Path, final: Path, folder: Path) -> Iterator[None]:
    """Delete what was half written, and say what went wrong and which checkpoint there still is.

    Args:
        aside: where it is written, before it becomes `final`.
        folder: where checkpoints are.

    Raises:
        OutputError: it could not be written.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch and safetensors report a full disk by errors of their own.
        shutil.rmtree(aside, ignore_errors=True)
        last = last_checkpoint(folder)
        still = f"the last checkpoint, {last}, is whole: resume from it" if last else "there is no checkpoint yet"
        if isinstance(error, OSError):
            raise OutputError(f"{output_error(final, error)}; {still}") from error
        raise OutputError(
            f"cannot write {final}: {one_line(error)}; check the free space of the disk; {still}"
        ) from error


def put_in_place(aside: Path, folder: Path, step: int, keep: int | None) -> None:
    """Flush a whole checkpoint to the disk, give it its name, and delete older ones.

    Args:
        aside: the folder in which transformers has written it.
        keep: how many checkpoints stay; None keeps all.
    """
    written, final = checkpoint_folder(aside, step), checkpoint_folder(folder, step)
    usual_modes(written)
    for file in written.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    shutil.rmtree(final, ignore_errors=True)
    written.rename(final)
    shutil.rmtree(aside, ignore_errors=True)
    rotate_checkpoints(str(folder), keep)


def save_meter(meter: Meter, checkpoint: Path) -> None:
    """Keep the figures since the last log with a checkpoint."""
    text = json.dumps({"sums": meter.sums, "steps": meter.steps})
    (checkpoint / METER_FILE).write_text(text, encoding="utf-8")


def load_meter(checkpoint: Path) -> Meter:
    """What `save_meter` kept.

    Raises:
        TrainingError: the checkpoint is none of ours, or damaged.
    """
    path = checkpoint / METER_FILE
    try:
        return Meter(**json.loads(path.read_text(encoding="utf-8-sig")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise TrainingError(f"{path} cannot be read ({one_line(error)}); resume from another checkpoint") from None
