"""Training a head that makes a frozen model draft for itself: from its own states, by its own distribution.

The model's states of some text are made once and kept (`states`); the head is distilled on them (`trainer`), as an exit
head after the first layers, or in the manner of EAGLE-3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch.utils.data import DataLoader, default_collate

from truedepth.engine.drafts.heads.eagle_head import EagleHead
from truedepth.engine.drafts.heads.exit_head import ExitHead
from truedepth.engine.drafts.heads.vocabulary import (
    DraftVocabulary,
    check_size,
    end_ids_of,
    most_frequent,
    vocabulary_size_of,
)
from truedepth.models.loading.load import LoadedModel
from truedepth.records.progress import Progress, silent
from truedepth.records.recipe import Settings
from truedepth.training.heads.loss import HeadDistillation
from truedepth.training.heads.rows import HeadRows
from truedepth.training.heads.shapes import EagleShape, ExitShape
from truedepth.training.heads.states import NOTHING, States, make_states
from truedepth.training.heads.text import HeadText, read_passages
from truedepth.training.heads.trainer import ExitHeadTrainer
from truedepth.training.recipe import TrainingRecipe
from truedepth.training.results import ProductRecord
from truedepth.training.run import Training
from truedepth.training.trainer.depth_trainer import DepthTrainer

HEAD_FOLDER = "head"
STATES_FOLDER = "states"

FILE_DTYPE = torch.bfloat16
"""Of a finished head's weights. What it drafts is verified, so a smaller file is worth more than its last digits."""

JUDGED_POSITIONS = 6
"""Drafted positions at which the finished head's agreement is measured."""


class HeadData(Settings):
    """The text whose states a head is trained on, and those that it is judged by."""

    train: HeadText
    held_out: dict[str, HeadText] = Field(default={}, description="by what the card will call them")
    length: int = Field(default=1024, ge=8, description="tokens of a row, and the most of a passage")


class StateSettings(Settings):
    """The hidden states on disk."""

    folder: Path | None = Field(
        default=None, description="where they are kept, for several trainings; by default in the output folder"
    )
    depths: tuple[int, ...] = Field(default=(), description="further depths to keep, for heads of other shapes")
    batch: int = Field(default=32, ge=1, description="passages that are read and answered at once")


class ExitHeadRecipe(TrainingRecipe):
    """The settings of `truedepth train exit-head`."""

    kind: Literal["exit-head"] = "exit-head"
    data: HeadData  # type: ignore[assignment]  # states instead of tokens
    head: Annotated[EagleShape | ExitShape, Field(discriminator="kind")]
    states: StateSettings = StateSettings()
    positions: int = Field(
        default=3, ge=1, description="drafted positions that an EAGLE head is trained at; an exit head needs one"
    )
    keep: float = Field(default=0.5, gt=0, le=1, description="share of the drafts that go on to each further position")
    decay: float = Field(default=0.8, gt=0, le=1, description="what each position counts of the one before")
    learning_rate: float = Field(default=1e-3, gt=0, description="learning rate after the warm-up")
    batch: int = Field(default=2, ge=1, description="rows of a step")


class ExitHeadKind:
    """The kind of training that `truedepth train exit-head` runs."""

    recipe = ExitHeadRecipe

    def trainer(self, training: Training[ExitHeadRecipe]) -> ExitHeadTrainer:
        """A trainer of a fresh head on the model's states, which are made first where they are not there yet."""
        recipe, loaded = training.recipe, training.loaded
        arguments = training.options["args"]
        placed: Any = loaded.model
        placed.to(arguments.device)
        with arguments.main_process_first(local=False):  # the other ranks find the states there
            states, held_out = states_of(recipe, loaded, training.folder, training.progress)
        head = recipe.head.fresh(loaded, draft_vocabulary(loaded, states, recipe.head.vocabulary))
        head.text = f"{len(states)} tokens of {' and '.join(recipe.data.train.sources)}"
        positions = recipe.positions if isinstance(head, EagleHead) else 1
        judged = States([part for some in held_out.values() for part in some.parts])
        sources = [source for text in recipe.data.held_out.values() for source in text.sources]
        options = {
            **training.options,
            "train_dataset": self._rows(head, recipe, loaded, states, recipe.data.train.sources),
            "eval_dataset": self._rows(head, recipe, loaded, judged, sources) if held_out else None,
            "data_collator": default_collate,
            "processing_class": None,
        }
        return ExitHeadTrainer(
            HeadDistillation(head, loaded.model, positions, recipe.keep), decay=recipe.decay, **options
        )

    def product(self, training: Training[ExitHeadRecipe], trainer: DepthTrainer) -> ProductRecord:
        """Measure the head on each held-out text, and write it."""
        recipe, loaded = training.recipe, training.loaded
        distillation: Any = trainer.model
        head: ExitHead | EagleHead = distillation.head
        folder = training.folder / HEAD_FOLDER
        figures: dict[str, float] = {}
        if training.is_first:
            _round(head)  # before it is measured
            _, held_out = states_of(recipe, loaded, training.folder, training.progress)
            head.agreement = {
                name: distillation.eval().agreement(
                    DataLoader(self._rows(head, recipe, loaded, states)), JUDGED_POSITIONS
                )
                for name, states in held_out.items()
            }
            head.save(folder, FILE_DTYPE)
            figures = {f"coverage of {name}": coverage(head, states) for name, states in held_out.items()}
        figures |= {
            f"agreement on {name}, position {position}": share
            for name, shares in head.agreement.items()
            for position, share in enumerate(shares, 1)
        }
        command = f"truedepth generate {loaded.name} --draft {folder} --prompt 'Why is the sky blue?' --stats"
        return ProductRecord(
            description="The head", path=HEAD_FOLDER, figures=figures, commands=[("Draft with it", command)]
        )

    def _rows(
        self,
        head: ExitHead | EagleHead,
        recipe: ExitHeadRecipe,
        loaded: LoadedModel,
        states: States,
        sources: Sequence[str] = (),
    ) -> HeadRows:
        return HeadRows(states, head, loaded.num_layers, recipe.data.length, sources)


KIND = ExitHeadKind()


def states_of(
    recipe: ExitHeadRecipe, loaded: LoadedModel, folder: Path, progress: Progress = silent
) -> tuple[States, dict[str, States]]:
    """The states of the text to train on, and of each held-out text; those that are there already are read.

    Args:
        folder: of the training.

    Raises:
        TextError, TrainingError, OutputError: see `read_passages` and `make_states`.
        UsageError: the draft vocabulary's size cannot be.
    """
    check_size(recipe.head.vocabulary, _special(loaded), vocabulary_size_of(loaded.model))
    base = recipe.states.folder or folder / STATES_FOLDER
    depths = [*recipe.head.read_at(loaded), *recipe.states.depths]

    def made(text: HeadText, name: str) -> States:
        passages = read_passages(text, loaded.tokenizer, recipe.data.length, recipe.seed, progress)
        return make_states(
            loaded, passages, base / name, depths, tokens=text.tokens, batch=recipe.states.batch, progress=progress
        )

    train = made(recipe.data.train, "train")
    return train, {name: made(text, f"held-out-{name}") for name, text in recipe.data.held_out.items()}


def draft_vocabulary(loaded: LoadedModel, states: States, size: int) -> DraftVocabulary:
    """The tokens that the model chose most often."""
    counts = states.counts(vocabulary_size_of(loaded.model))
    return most_frequent(counts, size, _special(loaded), "what the model chose in the training text")


def coverage(head: ExitHead | EagleHead, states: States) -> float:
    """The share of the tokens that the model chose which the head can draft."""
    chosen = states.chosen[states.chosen != NOTHING]
    return float(torch.isin(chosen, head.ids.cpu()).double().mean())


@torch.no_grad()
def _round(head: torch.nn.Module) -> None:
    """Round weights to what their file will hold."""
    for parameter in head.parameters():
        parameter.copy_(parameter.to(FILE_DTYPE))


def _special(loaded: LoadedModel) -> set[int]:
    size = vocabulary_size_of(loaded.model)
    return {token for token in (*end_ids_of(loaded.model), *loaded.tokenizer.all_special_ids) if 0 <= token < size}
