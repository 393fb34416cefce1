"""`truedepth vocabulary`: from a text to a draft vocabulary beside a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from truedepth.cli import main


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["vocabulary", *args])
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture
def text(tmp_path: Path) -> str:
    file = tmp_path / "text.txt"
    file.write_text("some text to count, and some more text\n")
    return str(file)


def test_writes_what_a_draft_reads(
    tiny_folder: Path, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary
    from truedepth.models.loading.load import load

    folder = tmp_path / "out"
    assert run(str(tiny_folder), "--text", text, "--size", "12", "-o", str(folder)) == 0
    out = capsys.readouterr().out
    loaded = load(str(tiny_folder), device="cpu")
    made = DraftVocabulary.load(folder, loaded.model, loaded.tokenizer)
    assert len(made.ids) == 12
    assert out == f"12 of 259 tokens cover {made.coverage:.1%} of {text}; written to {folder}\n"


def test_json(tiny_folder: Path, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--text", text, "--text", text]
    assert run(str(tiny_folder), *files, "--size", "259", "-o", str(tmp_path / "out"), "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "size": 259,
        "vocabulary_size": 259,
        "coverage": 1.0,
        "source": f"{text}, {text}",
        "output": str(tmp_path / "out"),
    }


@pytest.mark.parametrize(
    ("size", "code", "message"), [("260", 2, "at most 259"), ("2", 2, "at least 3"), ("0", 2, "--size")]
)
def test_sizes_that_cannot_be(
    size: str, code: int, message: str, tiny_folder: Path, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(str(tiny_folder), "--text", text, "--size", size, "-o", str(tmp_path / "out")) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_text_that_cannot_be_read(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(tiny_folder), "--text", str(tmp_path / "none"), "-o", str(tmp_path / "out")) == 1
    assert "give a readable text file" in capsys.readouterr().err


def test_a_text_is_asked_for(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(tiny_folder), "-o", str(tmp_path / "out")) == 2
    assert "Missing option '--text'" in capsys.readouterr().err
