"""How far long work is, where there is no terminal: a line at its beginning, and one every few seconds."""

from __future__ import annotations

import time

import pytest

from truedepth.cli.live import JobDisplay
from truedepth.records import progress


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.1)


def test_lines_come_while_a_step_takes_long(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.terminal("Reading [the] prompt", 3) as advance:
        advance()
        time.sleep(0.35)
    err = capsys.readouterr().err
    assert err.startswith("Reading [the] prompt ...\nReading [the] prompt: 1 of 3, 0 s\n")
    time.sleep(0.2)
    assert capsys.readouterr().err == ""


def test_work_of_one_step_says_nothing_where_it_is_quick(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.terminal("Loading", 1) as advance:
        advance()
    assert capsys.readouterr().err == ""
    with progress.terminal("Loading", 1):
        time.sleep(0.15)
    assert capsys.readouterr().err == "Loading: 0 s\n"


def test_an_error_ends_the_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), progress.terminal("Timing", 2):
        raise KeyboardInterrupt
    time.sleep(0.15)
    assert capsys.readouterr().err == "Timing ...\n"


def test_the_job_says_a_repeated_part_once(capsys: pytest.CaptureFixture[str]) -> None:
    with JobDisplay() as display:
        for _ in range(2):
            with display.progress("Judging plans", 4) as advance:
                advance()
                time.sleep(0.15)
    assert capsys.readouterr().err == "Judging plans ...\n" + "Judging plans: 1 of 4, 0 s\n" * 2
