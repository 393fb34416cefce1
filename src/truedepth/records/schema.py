"""What the schemas of written files have in common: strict fields, and reading a file back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from truedepth.errors import TruedepthError
from truedepth.records.json_files import read_json
from truedepth.records.messages import one_line


class Record(BaseModel):
    """A part of a written file."""

    # A broken plan can have an infinite perplexity; as a string it stays JSON that every reader takes.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class ResultsFile(Record):
    """What a job has found, as one JSON file.

    `schema_version` grows when a key changes meaning or goes away; new keys may appear within a version.
    """

    described_as: ClassVar[str]
    """What such a file is, for errors."""

    written_by: ClassVar[str]
    """What writes such a file."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts, as in the file; infinities are strings there."""
        plain: dict[str, Any] = json.loads(self.model_dump_json())
        return plain

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file.

        Raises:
            TruedepthError: it is missing, is not JSON, or has another schema.
        """
        try:
            return cls.model_validate(read_json(path, TruedepthError, "give a finished run's folder"))
        except (ValidationError, RecursionError) as error:
            raise TruedepthError(
                f"{path} is not {cls.described_as}: {one_line(error)}; run '{cls.written_by}' again"
            ) from None
