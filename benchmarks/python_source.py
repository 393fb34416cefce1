"""Python's standard library as text to train on: one file an item, and one file in twenty held out.

    python benchmarks/python_source.py FOLDER

writes FOLDER/train.jsonl and FOLDER/held_out.jsonl, and of the latter FOLDER/prompts.jsonl: some lines of a file, and
the line that follows them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from trained_exits import sources

from truedepth.records.files import write_atomic

EVERY = 40
"""Lines of a file between one prompt's end and the next's."""

BEFORE = 6
"""Lines of a prompt."""


def prompts(text: str) -> Iterator[dict[str, str]]:
    """Lines that say something, each with those before it."""
    lines = text.splitlines()
    for at in range(BEFORE, len(lines), EVERY):
        if lines[at].strip():
            yield {"prompt": "\n".join(lines[at - BEFORE : at]) + "\n", "response": lines[at].strip()}


def write(path: Path, items: Sequence[dict[str, str]]) -> None:
    write_atomic(path, "".join(json.dumps(item) + "\n" for item in items))
    print(f"{path}: {len(items)} items")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    kept, held_out = ([text for text in texts if text.strip()] for texts in sources())
    for name, texts in (("train.jsonl", kept), ("held_out.jsonl", held_out)):
        write(folder / name, [{"text": text} for text in texts])
    write(folder / "prompts.jsonl", [item for text in held_out for item in prompts(text)])


if __name__ == "__main__":
    main()
