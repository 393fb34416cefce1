"""The house is as `docs/architecture.md` draws it: its rooms, their size, and no circle of files."""

from __future__ import annotations

import graphlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "truedepth"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")

MOST_FILES = 14
LISTS_BY_NAME = {"methods", "cli"}
"""Rooms with one file a method, a command: they may hold more."""

PUBLIC_SURFACE = {"__init__", "__main__", "errors"}

OLD_TERMS = (
    "Trunk|Place|Pacer|pacer|Chooser|Watcher|TextWriter|StatesHead|OwnHead|OwnRows|LentCache|Contest|Contestant|"
    "draft_length|learnt|settle_merges|around_layers|Many|report text"
)
"""Private words that had a public one; see the glossary."""


def drawn_rooms() -> dict[str, set[str]]:
    """The modules of each room, by the tree on the page."""
    tree = re.search(r"```\nsrc/truedepth/\n(.*?)```", PAGE, re.DOTALL)
    assert tree is not None
    rooms: dict[str, set[str]] = {"": set()}
    path: list[str] = []
    for line in tree[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2 - 1
        name, slash, modules = line.strip().partition("/")
        if slash:
            path = [*path[:depth], name]
            rooms["/".join(path)] = set()
        else:
            modules = line
        rooms["/".join(path) if depth or slash else ""] |= set(re.findall(r"\w+", modules))
    return rooms


def rooms_on_disk() -> dict[str, set[str]]:
    rooms: dict[str, set[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        room = rooms.setdefault(file.parent.relative_to(PACKAGE).as_posix().removeprefix("."), set())
        if file.stem != "__init__" or file.parent == PACKAGE:
            room.add(file.stem)
    return rooms


def test_the_tree_on_the_page_is_the_tree_on_disk() -> None:
    assert drawn_rooms() == rooms_on_disk()


def test_rooms_are_small_and_nothing_lies_beside_them() -> None:
    for folder in {file.parent for file in PACKAGE.rglob("*.py")}:
        files = list(folder.glob("*.py"))
        assert len(files) <= MOST_FILES or folder.name in LISTS_BY_NAME, f"{folder.name} has {len(files)} files"
    assert {file.stem for file in PACKAGE.glob("*.py")} == PUBLIC_SURFACE


def test_no_circle_of_files() -> None:
    """Imports inside functions, and those for types only, count too."""
    graph = grimp.build_graph("truedepth", include_external_packages=False)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    graphlib.TopologicalSorter(imports).prepare()  # it raises CycleError, which names the files


def imported_in_docs() -> Iterator[tuple[str, str]]:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for line in page.read_text(encoding="utf-8").splitlines():
            if found := re.match(r"(?:from|import) (truedepth[\w.]*)", line.strip()):
                yield page.name, found[1]


def test_docs_import_public_names_only() -> None:
    """From `truedepth`, or from one level below."""
    assert [(page, name) for page, name in imported_in_docs() if name.count(".") > 1] == []


def test_old_terms_stay_away() -> None:
    own = Path(__file__).relative_to(ROOT).as_posix()
    command = ["git", "grep", "-nwE", OLD_TERMS, "--", ".", f":!{own}"]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    if found.returncode > 1:
        pytest.skip("this is no git checkout")
    assert found.stdout == ""
