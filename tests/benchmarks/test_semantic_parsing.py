"""The semantic parsing task: well-formed, the same at every run, and nothing of what is held out is trained on."""

from __future__ import annotations

import importlib.util
import random
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "semantic_parsing.py"


@pytest.fixture(scope="module")
def task() -> ModuleType:
    if not PATH.exists():
        pytest.skip("benchmarks/ is not part of the source distribution")
    spec = importlib.util.spec_from_file_location("semantic_parsing", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_trees_are_of_the_words_of_their_requests(task: ModuleType) -> None:
    rules = task.read_grammar(task.GRAMMAR.read_text(encoding="utf-8"))
    rng = random.Random(1)
    meanings: dict[str, str] = {}
    for _ in range(2000):
        item = task.draw(rules, rng)
        words = [word for word in item.response.split() if not re.fullmatch(r"\[(IN|SL):[A-Z_]+|\]", word)]
        assert " ".join(words) + "\n" == item.prompt
        assert item.response.count("[") == item.response.count("]") >= 1
        assert item.response.startswith("[IN:")
        assert "{" not in item.response and "@" not in item.response
        assert meanings.setdefault(item.prompt, item.response) == item.response


def test_forms_and_sentences_are_held_out(task: ModuleType) -> None:
    train, held_out = task.make(3000, 200)
    assert (len(train), len(held_out)) == (3000, 200)
    assert not {item.form for item in train} & {item.form for item in held_out}
    assert len({item.prompt for item in train + held_out}) == 3200
    assert len({item.form for item in train}) > 2000
    assert len({item.domain for item in held_out}) == 8


def test_the_same_at_every_run(task: ModuleType, tmp_path: Path) -> None:
    assert task.make(50, 5) == task.make(50, 5)
    assert task.make(50, 5) != task.make(50, 5, seed=1)
    figures = task.write(tmp_path, 50, 5)
    assert figures["train.jsonl"]["items"] == 50
    assert len((tmp_path / "held_out.jsonl").read_text(encoding="utf-8").splitlines()) == 5
