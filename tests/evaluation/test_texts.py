"""The text that plans are judged on: three splits that share nothing, and clear errors about a user's file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from truedepth.errors import TextError
from truedepth.evaluation.texts import WINDOW, Sizes, default_texts, file_texts

SIZES = Sizes(calibration=2, validation=3, test=4)


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_folder)


def rows(windows: Any) -> set[tuple[int, ...]]:
    return {tuple(row) for row in windows.tolist()}


def test_default_parts_have_the_sizes_asked_for_and_share_no_window(tokenizer: Any) -> None:
    texts = default_texts(tokenizer, SIZES)
    parts = [texts.calibration, texts.validation, texts.test]
    assert [tuple(part.shape) for part in parts] == [(2, WINDOW), (3, WINDOW), (4, WINDOW)]
    assert len(set.union(*map(rows, parts))) == 9


def test_default_parts_share_no_paragraph_of_prose(tokenizer: Any) -> None:
    """The reference repeats whole sections under several topics, so that this does not hold by itself."""
    texts = default_texts(tokenizer, Sizes(calibration=150, validation=150, test=150))
    lines = []
    for part in (texts.calibration, texts.validation, texts.test):
        prose = [tokenizer.decode(row) for row in part[::2]]
        lines.append({line for text in prose for line in text.split("\n")[1:-1] if len(line) > 40})
    assert all(len(found) > 10 for found in lines)
    assert not lines[0] & lines[1]
    assert not (lines[0] | lines[1]) & lines[2]


def test_the_seed_draws_other_calibration_but_never_other_report_text(tokenizer: Any) -> None:
    first, again, other = (default_texts(tokenizer, SIZES, seed) for seed in (0, 0, 1))
    assert first.calibration.equal(again.calibration)
    assert not first.calibration.equal(other.calibration)
    assert first.test.equal(other.test)


def test_a_file_is_cut_into_consecutive_parts(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("".join(chr(ord("a") + index % 26) for index in range(9 * WINDOW)), encoding="utf-8")
    texts = file_texts(file, tokenizer, SIZES)
    whole = tokenizer(file.read_text()).input_ids
    cut = [*texts.calibration.flatten().tolist(), *texts.validation.flatten().tolist()]
    assert cut == whole[: 5 * WINDOW]


def test_a_tokenizer_with_a_start_token_gets_it_in_every_window(tokenizer: Any) -> None:
    class Starting:
        bos_token_id = 1

        def __call__(self, text: str, add_special_tokens: bool = True, **options: Any) -> Any:
            encoded = tokenizer(text, **options)
            encoded["input_ids"] = [1] * add_special_tokens + encoded.input_ids
            return encoded

    texts = default_texts(Starting(), SIZES)  # type: ignore[arg-type]
    assert texts.test.shape == (4, WINDOW)
    assert (texts.test[:, 0] == 1).all()
    assert (texts.test[:, 1:] != 1).all()


def test_too_short_a_file_says_how_much_is_there_and_how_much_is_needed(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "short.txt"
    file.write_text("a" * (2 * WINDOW), encoding="utf-8")
    with pytest.raises(TextError, match=r"short\.txt.*too short.*2 windows.*9 are needed"):
        file_texts(file, tokenizer, SIZES)


def test_a_file_that_is_not_utf8_says_where(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes("schön".encode("latin-1"))
    with pytest.raises(TextError, match=r"latin\.txt.*not UTF-8.*byte 3"):
        file_texts(file, tokenizer, SIZES)


def test_a_missing_file_is_named(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"nowhere\.txt"):
        file_texts(tmp_path / "nowhere.txt", tokenizer, SIZES)
