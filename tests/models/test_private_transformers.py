"""The private interface that truedepth relies on is there, and nothing else of it is used."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from truedepth.models.private_transformers import PRIVATE_USES

ROOT = Path(__file__).parents[2]


def _owner(name: str) -> Any:
    """The module or class whose attribute the last part of `name` is."""
    parts = name.split(".")[:-1]
    for count in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:count]))
        except ImportError:
            continue
        for part in parts[count:]:
            found = getattr(found, part)
        return found
    raise ImportError(name)


def _is_there(owner: Any, attribute: str) -> bool:
    # What is set on instances only stands in the source of the class, or of those above it.
    classes = inspect.getmro(owner)[:-1] if inspect.isclass(owner) else ()
    found = (re.search(rf"\b{attribute}\b", inspect.getsource(part)) for part in classes)
    return hasattr(owner, attribute) or any(found)


def test_all_of_it_is_there() -> None:
    gone = [use for use in PRIVATE_USES if not _is_there(_owner(use.name), use.name.rpartition(".")[2])]
    assert not gone


def test_the_tests_that_hold_it_are_there() -> None:
    for use in PRIVATE_USES:
        file, _, name = use.test.partition("::")
        assert re.search(rf"def {name}\(", (ROOT / file).read_text("utf-8")), use


def test_nothing_else_is_used() -> None:
    """No other module reads an underscored attribute of something that is not its own."""
    source = ROOT / "src" / "truedepth"
    text = {path: path.read_text("utf-8") for path in source.rglob("*.py")}
    own = set(re.findall(r"(?:def |class |self\.|\n    )(_[a-z]\w*)\b|\"(_[a-z]\w*)\"", "\n".join(text.values())))
    own_names = {name for pair in own for name in pair if name}
    listed = {part for use in PRIVATE_USES for part in use.name.split(".")}
    used = {
        (name, path.name)
        for path, code in text.items()
        for name in re.findall(r"[\w\])]\.(_[a-z]\w*)", code)
        if name not in own_names | listed
    }
    assert not used
