"""What the files of draft vocabularies and exit heads have in common: tensors, and a card that says what they are.

Tensors are a safetensors file, which holds numbers only and is never unpickled; the card is JSON, read strictly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from truedepth.errors import DraftError
from truedepth.records.files import prepare_output, write_atomic
from truedepth.records.json_files import read_json
from truedepth.records.messages import one_line
from truedepth.records.version import VERSION

FORMAT_VERSION = 1


class Card(BaseModel):
    """The fields that every card has."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    format_version: int = FORMAT_VERSION
    truedepth_version: str = VERSION
    vocabulary_size: int = Field(ge=1, description="tokens of the model's vocabulary: columns of its logits")


CardT = TypeVar("CardT", bound=Card)


def write_draft_files(folder: Path, stem: str, card: Card, tensors: Mapping[str, Tensor]) -> None:
    """Write `stem.safetensors` and `stem.json` into a folder, each whole or not at all.

    Args:
        folder: made where it does not exist; may hold a checkpoint.

    Raises:
        OutputError: they cannot be written.
    """
    prepare_output(folder, resume=True)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(folder / f"{stem}.safetensors", save(plain))
    write_atomic(folder / f"{stem}.json", card.model_dump_json(indent=2) + "\n")


def read_draft_files(folder: Path, stem: str, schema: type[CardT]) -> tuple[CardT, dict[str, Tensor]]:
    """Read what `write_draft_files` wrote.

    Raises:
        DraftError: a file is missing, truncated or malformed, or of another format version.
    """
    return _read_card(folder / f"{stem}.json", schema), _read_tensors(folder / f"{stem}.safetensors")


def read_kind(folder: Path, stem: str) -> str | None:
    """A card's field `kind`; None where it cannot be read, which `read_draft_files` explains."""
    try:
        fields: Any = json.loads((folder / f"{stem}.json").read_bytes())
        return str(fields["kind"])
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return None


def _read_card(path: Path, schema: type[CardT]) -> CardT:
    fields: Any = read_json(path, DraftError, "give the folder of a draft, or make it again")
    version = fields.get("format_version") if isinstance(fields, dict) else None
    if version != FORMAT_VERSION:
        raise DraftError(
            f"{path} has the format version {version!r}, and this truedepth reads {FORMAT_VERSION}; "
            "use the truedepth that wrote it, or make it again"
        )
    try:
        return schema.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        details = (
            f"'{'.'.join(map(str, detail['loc']))}': {detail['msg'][:1].lower()}{detail['msg'][1:]}"
            for detail in error.errors(include_url=False)
        )
        raise DraftError(f"{path} is malformed: {'; '.join(details)}; make it again") from None


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise DraftError(f"{path} is truncated or corrupt: {one_line(error)}; make it again") from None
    except OSError as error:
        raise DraftError(f"cannot read {path}: {error.strerror or error}; give the folder that holds it") from None
