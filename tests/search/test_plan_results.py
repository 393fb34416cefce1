"""`results.json` is documented, and refuses what is not one."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from truedepth.errors import TruedepthError
from truedepth.search.plan_results import SCHEMA_VERSION, Results

DOCS = Path(__file__).parents[2] / "docs" / "results-file.md"


def keys(schema: type[BaseModel]) -> set[str]:
    """All keys of a record and of the records inside it."""
    found = set(schema.model_fields)
    for field in schema.model_fields.values():
        for kind in [field.annotation, *getattr(field.annotation, "__args__", ())]:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found |= keys(kind)
    return found


def test_every_key_is_documented() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert [key for key in sorted(keys(Results)) if f"`{key}`" not in text] == []
    assert f"`schema_version` is {SCHEMA_VERSION}" in text


@pytest.mark.parametrize("content", ["", "{}", "[1]", "not json", "\xff"])
def test_another_file_is_refused_by_name(content: str, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(TruedepthError, match=r"results\.json is not (a results file|JSON)"):
        Results.load(file)
