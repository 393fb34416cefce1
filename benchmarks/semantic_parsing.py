"""A semantic parsing task: requests to an assistant, and what they mean as a tree of intents and slots.

    python benchmarks/semantic_parsing.py FOLDER

writes FOLDER/train.jsonl and FOLDER/held_out.jsonl, one item a line, the same ones at every run:

    {"prompt": "wake me at 7 am tomorrow\\n",
     "response": "[IN:CREATE_ALARM wake me [SL:DATE_TIME at 7 am tomorrow ] ]", "domain": "alarm"}

The task is made after TOPv2 (arXiv 2010.03546): eight domains, nested intents and slots, and trees that repeat the
request's words, so that a parser writes some tokens by rule, copies others, and must understand where slots begin and
end. Items come from the grammar in semantic_parsing.grammar. An item's *form* is its tree with names, numbers and other
fillings left out; there are tens of thousands of forms, and no form, and no sentence, is in both files.

The grammar has a rule a line, `name = alternative | alternative`. In an alternative, `{rule}` is written out, `{rule?}`
in half of the cases, brackets belong to the tree, and all else are words. Fillings are rules whose names begin with @.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from truedepth.records.files import write_atomic

TRAIN, HELD_OUT = "train.jsonl", "held_out.jsonl"

HELD_OUT_SHARE = 12
"""One form in so many is held out."""

GRAMMAR = Path(__file__).with_suffix(".grammar")

_REFERENCE = re.compile(r"\{(@?\w+)(\??)\}")
_BRACKET = re.compile(r"\[\S+|\]")


@dataclass(frozen=True)
class Item:
    """A request and its meaning.

    Attributes:
        prompt: the request.
        response: the tree.
        form: the tree with its fillings left out.
        domain: a rule's name.
    """

    prompt: str
    response: str
    form: str
    domain: str


def read_grammar(text: str) -> dict[str, list[str]]:
    """Alternatives by rule."""
    rules = dict(line.split(" = ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    return {name: alternatives.split(" | ") for name, alternatives in rules.items()}


def draw(rules: Mapping[str, list[str]], rng: random.Random) -> Item:
    """An item by chance."""
    domain = rng.choice(rules["request"])[1:-1]
    pieces = list(_expand(rules, rng, rng.choice(rules[domain])))
    response = _spaced("".join(text for text, _ in pieces))
    prompt = _spaced(_BRACKET.sub(" ", response))
    return Item(f"{prompt}\n", response, _spaced("".join(form for _, form in pieces)), domain)


def _expand(rules: Mapping[str, list[str]], rng: random.Random, alternative: str) -> Iterator[tuple[str, str]]:
    """An alternative written out, piece by piece: as in the tree, and as in its form."""
    at = 0
    for found in _REFERENCE.finditer(alternative):
        literal = alternative[at : found.start()]
        yield literal, literal
        at = found.end()
        name, maybe = found.groups()
        if maybe and rng.random() < 0.5:
            continue
        chosen = rng.choice(rules[name])
        if name.startswith("@"):
            yield chosen, name
        else:
            yield from _expand(rules, rng, chosen)
    yield alternative[at:], alternative[at:]


def _spaced(text: str) -> str:
    return " ".join(text.split())


def is_held_out(form: str) -> bool:
    """Which file the items of a form go to."""
    return zlib.crc32(form.encode()) % HELD_OUT_SHARE == 0


def make(train: int, held_out: int, seed: int = 0) -> tuple[list[Item], list[Item]]:
    """Items to train on and items held out, each with sentences of its own."""
    rules, rng = read_grammar(GRAMMAR.read_text(encoding="utf-8")), random.Random(seed)
    kept: dict[bool, list[Item]] = {False: [], True: []}
    wanted = {False: train, True: held_out}
    seen: set[str] = set()
    while any(len(kept[which]) < wanted[which] for which in kept):
        item = draw(rules, rng)
        which = is_held_out(item.form)
        if item.prompt not in seen and len(kept[which]) < wanted[which]:
            seen.add(item.prompt)
            kept[which].append(item)
    return kept[False], kept[True]


def write(folder: Path, train: int, held_out: int) -> dict[str, object]:
    """Write both files; returns what is in them, in numbers.

    Raises:
        OutputError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = dict(zip((TRAIN, HELD_OUT), make(train, held_out), strict=True))
    for name, items in parts.items():
        lines = [
            json.dumps({"prompt": item.prompt, "response": item.response, "domain": item.domain}) for item in items
        ]
        write_atomic(folder / name, "\n".join(lines) + "\n")
    return {
        name: {
            "items": len(items),
            "forms": len({item.form for item in items}),
            "domains": dict(Counter(item.domain for item in items)),
            "words_of_a_request": round(sum(len(item.prompt.split()) for item in items) / len(items), 1),
            "words_of_a_tree": round(sum(len(item.response.split()) for item in items) / len(items), 1),
        }
        for name, items in parts.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=40_000, help="items to train on")
    parser.add_argument("--held-out", type=int, default=1000, help="items held out")
    options = parser.parse_args()
    print(json.dumps(write(options.folder, options.train, options.held_out), indent=2))


if __name__ == "__main__":
    main()
