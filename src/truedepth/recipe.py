"""What the main job was asked to do: saved beside its results, and enough to repeat them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from truedepth.errors import UsageError
from truedepth.files import write_atomic
from truedepth.search import MOVES, Move, Target
from truedepth.yaml_files import read_yaml


class Windows(BaseModel):
    """How much text each part of the job reads, in windows of `truedepth.evaluation.texts.WINDOW` tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    calibration: int = Field(default=3, ge=1, description="what methods and search look at")
    validation: int = Field(default=12, ge=1, description="what the winner is picked and improved on")
    report: int = Field(default=12, ge=1, description="what the published figures come from")


class Recipe(BaseModel):
    """The settings of `truedepth optimize`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="whatever `truedepth.load` takes")
    dtype: str = "auto"
    device: str = "auto"
    trust_remote_code: bool = False
    target: Literal["speedup", "max_perplexity_ratio", "depth"] = Field(description="what `value` is a target for")
    value: float
    moves: tuple[Move, ...] = MOVES
    hardware: str | None = Field(default=None, description="plan for this hardware profile instead of this machine")
    text: Path | None = Field(default=None, description="text file to judge plans on; a default where none is given")
    seed: int = Field(default=0, description="which documents of the default text are drawn")
    windows: Windows = Windows()

    def to_target(self) -> Target:
        """The target.

        Raises:
            UsageError: the value cannot be met by any plan, or is met by every plan.
        """
        return Target(self.target, self.value)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts."""
        return self.model_dump(mode="json")

    def save(self, path: Path) -> None:
        """Write the recipe as YAML.

        Raises:
            OutputError: the file cannot be written.
        """
        header = (
            "# How the results beside this file were made. Repeat it with: truedepth optimize --recipe recipe.yaml\n"
        )
        write_atomic(path, header + yaml.safe_dump(self.to_dict(), sort_keys=False))

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read a recipe.

        Raises:
            UsageError: the file is missing, malformed, or has a wrong field (by name).
        """
        return read_yaml(path, cls, "a recipe", UsageError)
