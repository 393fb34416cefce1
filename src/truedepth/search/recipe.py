"""What a job was asked to do: saved beside its results, and enough to repeat them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from truedepth.errors import UsageError
from truedepth.records.recipe import BaseRecipe, Settings
from truedepth.records.yaml_files import read_yaml
from truedepth.search.moves import MOVES, Move
from truedepth.search.walk import Target

LOSSLESS = "lossless"
"""The target of a recipe that looks for a draft."""


class Windows(Settings):
    """How much text each split has, in windows of `truedepth.evaluation.texts.WINDOW` tokens."""

    calibration: int = Field(default=3, ge=1, description="what methods and search look at")
    validation: int = Field(default=12, ge=1, description="what the winner is picked and improved on")
    test: int = Field(default=12, ge=1, description="what the published figures come from")


class _Common(BaseRecipe):
    """What all jobs have."""

    model: str = Field(description="whatever `truedepth.load` takes")
    dtype: str = "auto"
    device: str = "auto"
    trust_remote_code: bool = False
    text: Path | None = Field(default=None, description="text file to judge plans on; a default where none is given")
    seed: int = Field(default=0, description="which documents of the default text are drawn")

    def command(self) -> str:
        return "truedepth optimize --recipe recipe.yaml"


class Recipe(_Common):
    """The settings of `truedepth optimize` for a shallower model."""

    target: Literal["speedup", "max_perplexity_ratio", "depth"] = Field(description="what `value` is a target for")
    value: float
    moves: tuple[Move, ...] = MOVES
    hardware: str | None = Field(default=None, description="plan for this hardware profile instead of this machine")
    windows: Windows = Windows()

    def to_target(self) -> Target:
        """The target.

        Raises:
            UsageError: the value cannot be met by any plan, or is met by every plan.
        """
        return Target(self.target, self.value)


class LosslessRecipe(_Common):
    """The settings of `truedepth optimize --lossless`. Each window of text is a prompt."""

    target: Literal["lossless"] = "lossless"
    windows: Windows = Windows(calibration=8, validation=4, test=8)


class _Kind(BaseModel):
    """What tells the kinds of recipe apart."""

    model_config = ConfigDict(extra="ignore")

    target: Any = None


def load_recipe(path: Path) -> Recipe | LosslessRecipe:
    """Read a recipe of either kind.

    Raises:
        UsageError: the file is missing, malformed, or has a wrong field (by name).
    """
    try:
        is_lossless = read_yaml(path, _Kind, "a recipe", UsageError).target == LOSSLESS
    except UsageError:
        is_lossless = False  # what is wrong is said below, with the names of all fields
    return LosslessRecipe.load(path) if is_lossless else Recipe.load(path)
