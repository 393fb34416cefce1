"""Running a recipe: model, text and trainer are made, the model is trained, and results are written."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from truedepth.errors import OutputError
from truedepth.measuring.bandwidth import read_bandwidth
from truedepth.measuring.machine import machine_record
from truedepth.models.loading.load import LoadedModel
from truedepth.models.loading.quiet import quiet_transformers
from truedepth.models.record import ModelRecord
from truedepth.records.files import prepare_output, usual_modes, write_atomic
from truedepth.records.progress import Progress, silent
from truedepth.records.recipe import RECIPE_FILE
from truedepth.records.version import VERSION
from truedepth.training.arguments import training_arguments
from truedepth.training.data.rows import TokenRows
from truedepth.training.data.sources import DataSource
from truedepth.training.data.tokenized import tokenize
from truedepth.training.new_model import load_or_make
from truedepth.training.precision import warn_of_slow_precision
from truedepth.training.recipe import Data, TrainingRecipe
from truedepth.training.results import TRAINING_FILE, FiguresRecord, ProductRecord, RowsRecord, TrainingResults
from truedepth.training.trainer.checkpoints import last_checkpoint, named_failures, step_of
from truedepth.training.trainer.depth_trainer import DepthTrainer
from truedepth.training.trainer.figures import FIGURES_FILE, read_figures
from truedepth.training.trainer.pace import Snapshot

RecipeT = TypeVar("RecipeT", bound=TrainingRecipe)

TENSORBOARD_FOLDER = "tensorboard"
MODEL_FOLDER = "model"


@dataclass(frozen=True)
class Training(Generic[RecipeT]):
    """All that a kind makes its trainer from.

    Attributes:
        folder: where everything is written.
        loaded: the model, on the CPU, and its tokenizer.
        options: what a `DepthTrainer` takes besides its model. A kind that trains on something else replaces
            `train_dataset` and `eval_dataset` by rows with a `record`, and gives a `data_collator`.
    """

    recipe: RecipeT
    folder: Path
    loaded: LoadedModel
    options: dict[str, Any]
    progress: Progress

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes: the first of all ranks."""
        arguments: TrainingArguments = self.options["args"]
        return bool(arguments.process_index == 0)


class Kind(Protocol[RecipeT]):
    """A kind of training."""

    @property
    def recipe(self) -> type[RecipeT]:
        """Its settings."""
        ...

    def trainer(self, training: Training[RecipeT]) -> DepthTrainer:
        """The trainer, whose `train` is called then."""
        ...

    def product(self, training: Training[RecipeT], trainer: DepthTrainer) -> ProductRecord:
        """Write what was trained into the folder, whole or not at all. Called on all ranks; the first one writes."""
        ...


def train(
    kind: Kind[RecipeT],
    recipe: RecipeT,
    folder: Path,
    *,
    resume: bool = False,
    progress: Progress = silent,
    on_snapshot: Callable[[Snapshot], None] = lambda snapshot: None,
) -> TrainingResults | None:
    """Train by a recipe; write its product, `training-results.json`, `recipe.yaml` and `training.jsonl`.

    Args:
        folder: created if it is missing; it must be empty unless `resume`.
        resume: go on with the training that `folder` holds, from its last checkpoint, or from the start where there is
            none. It must have had the same recipe.
        progress: shows what happens before the training.
        on_snapshot: called after each step, each log and each evaluation with how the training stands.

    Returns:
        The results, on the first rank; None on the others.

    Raises:
        TruedepthError: what the recipe asks for is wrong, cannot be loaded, trained or written.
        KeyboardInterrupt: by Ctrl-C or SIGTERM; a training that had begun has written a checkpoint.
    """
    arguments = training_arguments(recipe, folder)
    is_first = arguments.process_index == 0
    with arguments.main_process_first(local=False):
        if is_first:
            _prepare(folder, recipe, resume)
            warn_of_slow_precision(recipe.precision, arguments.device)
    checkpoint = last_checkpoint(folder) if resume else None
    arguments.eval_on_start = arguments.eval_on_start and checkpoint is None
    training = _training(recipe, folder, arguments, progress if is_first else silent, on_snapshot)
    if is_first:
        recipe.save(folder / RECIPE_FILE)  # not before text and model are known to be right: mistakes leave no files
    model_record = ModelRecord.of(training.loaded.model, training.loaded.name)
    with _board(recipe, folder, step_of(checkpoint) if checkpoint else 0, is_first) as callbacks:
        training.options["callbacks"] = callbacks
        trainer = kind.trainer(training)
        trainer.train(str(checkpoint) if checkpoint else None)
    trained_parameters = trainer.trained_parameters  # a product may merge adapters, which leaves none
    product = kind.product(training, trainer)
    if not is_first:
        return None
    results = _results(training, trainer, model_record, trained_parameters, product)
    write_atomic(folder / TRAINING_FILE, results.model_dump_json(indent=2) + "\n")
    return results


def save_model(training: Training[Any], trainer: DepthTrainer, model: PreTrainedModel | None = None) -> Path:
    """Write the trained model and its tokenizer as a checkpoint that `truedepth.load` reads.

    Args:
        model: another than the trainer's own, such as one with its adapters merged.

    Returns:
        Its folder.

    Raises:
        OutputError: it cannot be written; nothing is left half written.
    """
    final, aside = training.folder / MODEL_FOLDER, training.folder / f".{MODEL_FOLDER}.part"
    with named_failures(aside, final, training.folder), quiet_transformers():
        if training.is_first:
            shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
        if model is None:
            trainer.save_model(str(aside))
        elif training.is_first:
            model.save_pretrained(aside)
            training.loaded.tokenizer.save_pretrained(aside)
        if training.is_first:
            (aside / "training_args.bin").unlink(missing_ok=True)  # transformers' own, a pickle
            usual_modes(aside)
            shutil.rmtree(final, ignore_errors=True)
            aside.rename(final)
    return final


def _prepare(folder: Path, recipe: TrainingRecipe, resume: bool) -> None:
    """Make sure that the folder can be written, and holds nothing or a training with this recipe."""
    prepare_output(folder, resume=resume)
    path = folder / RECIPE_FILE
    if resume and path.exists():
        before, now = type(recipe).load(path).to_dict(), recipe.to_dict()
        if changed := list(_changes(before, now)):
            raise OutputError(
                f"{folder} holds a training with another recipe: {', '.join(changed)}; resume with {path}, or choose "
                "another folder"
            )


def _changes(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """What differs between two recipes, each field by its own name."""
    if isinstance(before, dict) and isinstance(now, dict) and before.keys() == now.keys():
        for key in now:
            yield from _changes(before[key], now[key], f"{name}.{key}" if name else key)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for at, pair in enumerate(zip(before, now, strict=True)):
            yield from _changes(*pair, f"{name}[{at}]")
    elif before != now:
        yield f"{name} was {before!r} and is {now!r}"


def _training(
    recipe: RecipeT,
    folder: Path,
    arguments: TrainingArguments,
    progress: Progress,
    on_snapshot: Callable[[Snapshot], None],
) -> Training[RecipeT]:
    data = recipe.data
    with progress("Loading the model", 1) as advance:
        loaded = load_or_make(recipe.model, data.train if isinstance(data, Data) else (), recipe.seed)
        advance()

    def rows_of(sources: tuple[DataSource, ...]) -> TokenRows | None:
        if not sources:
            return None
        with arguments.main_process_first(local=False):  # the others find the tokens in the cache
            items = tokenize(sources, loaded.tokenizer, data.responses, progress=progress)
        pad_id = loaded.tokenizer.pad_token_id
        return TokenRows(items, data.length, packed=data.packed, too_long=data.too_long, pad_id=pad_id or 0)

    options = {
        "args": arguments,
        "train_dataset": rows_of(data.train) if isinstance(data, Data) else None,
        "eval_dataset": rows_of(data.held_out) if isinstance(data, Data) else None,
        "processing_class": loaded.tokenizer,
        "on_snapshot": on_snapshot,
    }
    return Training(recipe, folder, loaded, options, progress)


@contextmanager
def _board(recipe: TrainingRecipe, folder: Path, step: int, is_first: bool) -> Iterator[list[TrainerCallback]]:
    """Callbacks that write TensorBoard's log, which is closed whatever happens."""
    if not (recipe.logging.tensorboard and is_first):
        yield []
        return
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    # A resumed training logs the steps after its checkpoint again.
    writer: Any = SummaryWriter(folder / TENSORBOARD_FOLDER, purge_step=step + 1 if step else None)
    try:
        yield [TensorBoardCallback(writer)]
    finally:
        writer.close()


def _results(
    training: Training[Any], trainer: DepthTrainer, model: ModelRecord, trained_parameters: int, product: ProductRecord
) -> TrainingResults:
    history = read_figures(training.folder / FIGURES_FILE)
    device = torch.device(trainer.args.device)
    return TrainingResults(
        truedepth_version=VERSION,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=history[-1].seconds if history else 0.0,
        kind=training.recipe.kind,
        recipe=training.recipe.to_dict(),
        model=model.model_copy(update={"device": str(device)}),
        machine=machine_record(device, read_bandwidth(device)),
        ranks=trainer.args.world_size,
        trained_parameters=trained_parameters,
        steps=trainer.state.global_step,
        train=_record(trainer.train_dataset),
        held_out=None if trainer.eval_dataset is None else _record(trainer.eval_dataset),
        history=[FiguresRecord.of(figures) for figures in history],
        product=product,
    )


def _record(rows: Any) -> RowsRecord:
    """What is said of rows in the results."""
    record: RowsRecord = RowsRecord.of(rows) if isinstance(rows, TokenRows) else rows.record
    return record
