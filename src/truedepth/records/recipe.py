"""What a job was asked to do, as a YAML file: written by people, and saved beside the job's results to repeat them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import yaml
from pydantic import BaseModel, ConfigDict

from truedepth.errors import UsageError
from truedepth.records.files import write_atomic
from truedepth.records.yaml_files import read_yaml

RECIPE_FILE = "recipe.yaml"


class Settings(BaseModel):
    """A group of settings: unknown names are refused, as are numbers that are not finite; nothing changes after."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BaseRecipe(Settings):
    """All settings of a job."""

    described_as: ClassVar[str] = "a recipe"
    """What such a file is, for errors."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts."""
        return self.model_dump(mode="json")

    def command(self) -> str:
        """The command line that does the same again."""
        raise NotImplementedError

    def save(self, path: Path) -> None:
        """Write the recipe as YAML, and how to repeat it.

        Raises:
            OutputError: the file cannot be written.
        """
        header = f"# How the results beside this file were made. Repeat it with: {self.command()}\n"
        write_atomic(path, header + yaml.safe_dump(self.to_dict(), sort_keys=False))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a recipe of this kind.

        Raises:
            UsageError: the file is missing, malformed, or has a wrong field (by name).
        """
        return read_yaml(path, cls, cls.described_as, UsageError)
