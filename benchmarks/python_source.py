"""Python's standard library as text to train on: one file an item, and one file in twenty held out.

    python benchmarks/python_source.py FOLDER

writes FOLDER/train.jsonl and FOLDER/held_out.jsonl.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from trained_exits import sources

from truedepth.files import write_atomic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts in zip(("train.jsonl", "held_out.jsonl"), sources(), strict=True):
        write_atomic(folder / name, "".join(json.dumps({"text": text}) + "\n" for text in texts if text.strip()))
        print(f"{folder / name}: {len(texts)} files, {sum(map(len, texts)) / 1e6:.1f} million characters")


if __name__ == "__main__":
    main()
