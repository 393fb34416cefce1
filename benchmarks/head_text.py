"""Prompts for training a head of a chat model: questions, tasks on passages, writing; prose and code to go on with.

    python benchmarks/head_text.py DATA FOLDER

DATA holds `arc_easy.jsonl`, `arc_challenge.jsonl`, `openbookqa.jsonl`, `piqa.jsonl`, `gsm8k_train.jsonl`,
`wmt22_de_en.jsonl` (a `question` or `source` a line) and `wikitext2_valid.txt`. FOLDER gets `chat.jsonl`, `prose.jsonl`
and `code.jsonl`, and with `held-out-` before their names what no head may be trained on: every tenth question, article
and module. The benchmark that heads are measured on, Spec-Bench, is not read.

The lines are shuffled, so the first of them are of all kinds. The same DATA gives the same files.
"""

from __future__ import annotations

import json
import random
import re
import sys
import sysconfig
from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path

from wikitext import articles, is_held_out

EXCLUDED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "lib2to3"}

TASKS = (
    "Write a short story about {}.",
    "Write a poem about {}.",
    "Compose an engaging blog post about {}.",
    "Draft a polite email to a colleague about {}.",
    "Explain {} to a ten-year-old.",
    "What are the advantages and disadvantages of {}?",
    "Give me five tips for somebody who wants to learn about {}.",
    "Describe the history of {} in two paragraphs.",
    "Imagine you are an expert on {}. What is the most common mistake that people make about it?",
    "Write a Python function for a program about {}, with a docstring and an example.",
    "Compare {} with something similar, and make a table of the differences.",
    "How does {} work, and why does it matter?",
    "Pretend to be a travel guide, and tell me about {}.",
    "Write a dialogue between two friends who argue about {}.",
    "What would happen if there were no {}? Think step by step.",
    "List three open questions about {} and how one might answer them.",
)

QUESTIONS = (
    "What is this text about?",
    "Which people, places and dates does the text name?",
    "Answer in one paragraph: what is the most important point of this text?",
    "Why is {} important, according to the text?",
    "What does the text say about {}?",
)

_CODING = (
    "Write a Python program that {}.",
    "Implement a function that {}. Explain how it works.",
    "How do I write code in Python that {}?",
)

_DEEDS = (
    "counts the words of a text file and prints the most frequent ones",
    "merges two sorted lists into one",
    "finds all prime numbers below n",
    "reads a CSV file and sums up a column",
    "checks whether a string is a palindrome",
    "walks through a directory and lists the largest files",
    "computes the median of a list of numbers",
    "converts Roman numerals to integers",
    "reverses a linked list",
    "finds the shortest path in a graph",
    "parses a date such as 2024-05-17 and names the day of the week",
    "removes duplicates from a list and keeps its order",
    "downloads a page and prints its links",
    "sorts dictionaries by one of their keys",
    "solves a quadratic equation",
    "simulates throwing two dice a thousand times",
)


def fields(path: Path, name: str) -> list[str]:
    return [json.loads(line)[name] for line in path.read_text(encoding="utf-8").splitlines()]


def modules() -> dict[str, str]:
    """The standard library's source files by their path."""
    root = Path(sysconfig.get_path("stdlib"))
    found = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        text = path.read_text(encoding="utf-8", errors="ignore")
        if EXCLUDED.isdisjoint(name.parts) and len(text) > 2000:
            found[name.as_posix()] = text
    return found


def topics(titles: list[str], questions: list[str]) -> list[str]:
    """Things to write about: titles, and words of questions that end like nouns."""
    words = {word.lower() for question in questions for word in re.findall(r"\b[a-zA-Z]{4,12}\b", question)}
    return sorted({word for word in words if _NOUN.search(word)} | set(titles))


_NOUN = re.compile("(tion|sion|ment|ness|ity|ism|ics|ology|graphy|ture|ance|ence|ists|ors|als|age|ery|house|water)$")


def chats(data: Path, texts: dict[str, str], draw: random.Random) -> Iterator[list[str]]:
    """Users' messages, one list a kind."""
    asked = [
        question
        for name in ("arc_easy", "arc_challenge", "openbookqa")
        for question in fields(data / f"{name}.jsonl", "question")
    ]
    yield asked
    yield fields(data / "piqa.jsonl", "question")
    yield fields(data / "gsm8k_train.jsonl", "question")[:1500]
    yield [f"Translate German to English: {text}" for text in fields(data / "wmt22_de_en.jsonl", "source")]
    yield [f"Summarize: {text}" for text in _passages(texts, draw)]
    yield [f"{text}\n{draw.choice(QUESTIONS).format(draw.choice(list(texts)))}" for text in _passages(texts, draw)]
    things = topics(list(texts), asked)
    yield [draw.choice(TASKS).format(draw.choice(things)) for _ in range(1500)]
    yield [way.format(deed) for way in _CODING for deed in _DEEDS]


def _passages(texts: dict[str, str], draw: random.Random) -> list[str]:
    """Neighbouring paragraphs of articles, 600 to 3000 characters."""
    found = []
    for text in texts.values():
        paragraphs = text.split("\n\n")
        start = 0
        while start < len(paragraphs):
            count = draw.randint(1, 4)
            passage = "\n".join(paragraphs[start : start + count])[:3000]
            start += count
            if len(passage) > 600:
                found.append(passage)
    return found


def write(path: Path, name: str, items: list[str]) -> None:
    path.write_text("".join(json.dumps({name: item}) + "\n" for item in items), encoding="utf-8")
    print(f"{path}: {len(items)} items, {sum(map(len, items)) // 1000} kB")


def main(data: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    read, sources = articles(data / "wikitext2_valid.txt"), modules()
    for held_out in (False, True):
        prefix, draw = ("held-out-" if held_out else ""), random.Random(int(held_out))
        texts = {title: text for title, text in read.items() if is_held_out(title) == held_out}
        kinds = []
        for messages in chats(data, texts, draw):
            own = [message for message in dict.fromkeys(messages) if is_held_out(message) == held_out]
            draw.shuffle(own)
            kinds.append(own[:600])
        # In turn, so that the first lines have all kinds in equal parts.
        messages = [message for turn in zip_longest(*kinds) for message in turn if message is not None]
        write(folder / f"{prefix}chat.jsonl", "prompt", messages)
        code = [text for name, text in sources.items() if is_held_out(name) == held_out]
        for name, items in (("prose", list(texts.values())), ("code", code)):
            parts = list(chain.from_iterable(_cut(text) for text in items))
            draw.shuffle(parts)
            write(folder / f"{prefix}{name}.jsonl", "text", parts[:1500])


def _cut(text: str, size: int = 1200) -> list[str]:
    """A text in parts that begin with a line."""
    starts = [0]
    for line in re.finditer(r"\n+", text):
        if line.end() - starts[-1] >= size:
            starts.append(line.end())
    ends = [*starts[1:], len(text)]
    return [part for start, end in zip(starts, ends, strict=True) if len(part := text[start:end]) > size // 2]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
