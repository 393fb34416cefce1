"""Text to train under plans on, and other text of the same three kinds to judge by.

    python benchmarks/recovery_text.py WIKITEXT.txt FOLDER

writes JSON lines with a `text` each: FOLDER/train.jsonl, and FOLDER/held_out-articles.jsonl, held_out-reference.jsonl
and held_out-source.jsonl. Articles are WikiText's, every tenth of them held out. The others are those of the default
text of `truedepth optimize`: Python's language reference and standard library, of which the documents of its test
split are held out. So what a search reports before training can be compared with what is measured after.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from head_text import modules
from wikitext import articles, is_held_out

from truedepth.evaluation.texts import SPLITS, default_documents
from truedepth.records.files import write_atomic

SOURCE = 1_500_000
"""Characters of source to train on."""

HELD_OUT = 40_000
"""Characters of each kind to judge by, in equal parts from its texts."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wikitext", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    read = articles(options.wikitext)
    test = SPLITS.index("test")
    reference, source = default_documents()
    held_out = {
        "articles": [text for title, text in read.items() if is_held_out(title)],
        "reference": reference.pop(test),
        "source": source.pop(test),
    }
    train = [text for title, text in read.items() if not is_held_out(title)]
    train += [text for part in reference for text in part]
    train += _some(sorted(set(modules().values()) - set(held_out["source"])), SOURCE)
    random.Random(0).shuffle(train)
    _write(options.folder / "train.jsonl", train)
    for name, texts in held_out.items():
        _write(options.folder / f"held_out-{name}.jsonl", [text[: HELD_OUT // len(texts)] for text in texts])


def _some(texts: list[str], characters: int) -> list[str]:
    """Texts drawn by chance, until they have so many characters."""
    random.Random(0).shuffle(texts)
    found: list[str] = []
    while texts and sum(map(len, found)) < characters:
        found.append(texts.pop())
    return found


def _write(path: Path, texts: list[str]) -> None:
    write_atomic(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))
    print(f"{path}: {len(texts)} texts, {sum(map(len, texts)) / 1e6:.2f} million characters")


if __name__ == "__main__":
    main()
