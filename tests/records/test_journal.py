"""A journal keeps what is known across interruptions, and refuses to mix two jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from truedepth.errors import OutputError
from truedepth.records.journal import Journal


def test_figures_are_found_once_and_survive(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    found: list[int] = []

    def find() -> float:
        found.append(1)
        return 0.1 + 0.2

    assert Journal(path, {"model": "a"}).remember("loss", "0-3", find) == 0.1 + 0.2
    again = Journal(path, {"model": "a"})
    assert again.remember("loss", "0-3", find) == 0.1 + 0.2
    assert again.of_kind("loss") == {"0-3": 0.1 + 0.2}
    assert found == [1]


@pytest.mark.parametrize("torn", [1, 5, 30])
def test_a_line_that_was_cut_off_is_found_again(tmp_path: Path, torn: int) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, {})
    journal.of_kind("loss")["first"] = 1
    journal.of_kind("loss")["second"] = 2
    path.write_bytes(path.read_bytes()[:-torn])
    resumed = Journal(path, {})
    assert resumed.of_kind("loss") == {"first": 1}
    resumed.of_kind("loss")["third"] = 3
    assert Journal(path, {}).of_kind("loss") == {"first": 1, "third": 3}


def test_time_adds_up_over_the_parts(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    first = Journal(path, {})
    first.of_kind("loss")["a"] = 1
    before = first.seconds
    assert Journal(path, {}).seconds == pytest.approx(before, abs=0.5)


def test_another_job_is_refused_with_the_difference(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path, {"model": "a", "seed": 0})
    with pytest.raises(OutputError, match=r"other settings: seed was 0 and is 1"):
        Journal(path, {"model": "a", "seed": 1})


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text("not json\n", encoding="utf-8")
    with pytest.raises(OutputError, match=r"journal\.jsonl is damaged"):
        Journal(path, {})


@pytest.mark.parametrize(
    "line", ["3", "[]", '{"kind": "loss"}', '{"kind": "loss", "key": [], "value": 1, "seconds": 0}', "[" * 100_000]
)
def test_a_line_that_is_none_of_a_journal(line: str, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    for lines in (['{"subject": {}}', line], [line]):
        path.write_text("".join(f"{own}\n" for own in lines))
        with pytest.raises(OutputError, match=r"journal\.jsonl is damaged"):
            Journal(path, {})
