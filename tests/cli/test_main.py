"""The frame of the command line: lazy commands, help, errors and exit codes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import click
import pytest

from truedepth import __version__, cli
from truedepth.cli import COMMANDS, main
from truedepth.errors import OutputError, PlanError, TruedepthError

HEAVY = {"torch", "transformers", "pydantic", "numpy", "plotly", "yaml", "rich", "jinja2", "gguf"}


def run(*args: str) -> int:
    """Exit code of `truedepth ARGS`."""
    with pytest.raises(SystemExit) as caught:
        main(list(args))
    assert isinstance(caught.value.code, int)
    return caught.value.code


def run_raising(monkeypatch: pytest.MonkeyPatch, error: BaseException, *args: str) -> int:
    """Exit code of `truedepth ARGS models`, where the command raises `error`."""

    @click.command()
    def command() -> None:
        raise error

    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: command)
    return run(*args, "models")


class TestHelp:
    @pytest.mark.parametrize("args", [["--help"], ["-h"], ["--version"], []])
    def test_imports_nothing_heavy(self, args: list[str]) -> None:
        """This is what keeps `truedepth --help` fast."""
        script = (
            "import sys\nfrom truedepth.cli import main\n"
            f"try:\n    main({args})\nexcept SystemExit:\n    print('\\n' + ' '.join(sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        loaded = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
        assert "truedepth" in loaded
        assert not loaded & HEAVY

    @pytest.mark.parametrize("name", COMMANDS)
    def test_help_of_a_command_does_not_import_torch(self, name: str) -> None:
        script = (
            "import sys\nfrom truedepth.cli import main\n"
            f"try:\n    main(['{name}', '--help'])\nexcept SystemExit:\n    sys.exit('torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0
        assert f"Usage: truedepth {name}" in done.stdout

    def test_lists_every_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("--help") == 0
        out = capsys.readouterr().out
        assert all(f"\n  {name} " in out for name in COMMANDS)

    def test_shows_examples_line_by_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        run("--help")
        assert "\n    truedepth show run\n    truedepth generate " in capsys.readouterr().out

    @pytest.mark.parametrize("name", COMMANDS)
    def test_every_command_has_examples(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(name, "--help") == 0
        assert f"\n    truedepth {name}" in capsys.readouterr().out

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("--version") == 0
        assert capsys.readouterr().out == f"truedepth {__version__}\n"

    def test_without_arguments(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run() == 2
        assert "Usage: truedepth" in capsys.readouterr().err


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "code"),
        [(PlanError("bad plan"), 2), (OutputError("bad folder"), 1), (TruedepthError("bad luck"), 1)],
    )
    def test_ours(
        self,
        error: TruedepthError,
        code: int,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert run_raising(monkeypatch, error) == code
        captured = capsys.readouterr()
        assert captured.err == f"truedepth: error: {error}\n"
        assert captured.out == ""

    def test_one_paragraph(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        run_raising(monkeypatch, TruedepthError("first\n\n  second"))
        assert capsys.readouterr().err == "truedepth: error: first second\n"

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["plam"], "No such command 'plam'. See 'truedepth --help'."),
            (["--fast"], "No such option"),
            (["models", "--fast"], "No such option"),
            (["models", "extra"], "See 'truedepth models --help'."),
        ],
    )
    def test_wrong_usage(self, args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(*args) == 2
        error = capsys.readouterr().err
        assert error.startswith("truedepth: error: ")
        assert message in error
        assert error.count("\n") == 1

    def test_debug_shows_the_traceback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        @click.command()
        def command() -> None:
            raise TruedepthError("bad luck")

        monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: command)
        with pytest.raises(TruedepthError, match="bad luck"):
            main(["--debug", "models"])

    def test_interrupt(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        assert run_raising(monkeypatch, KeyboardInterrupt(), "--debug") == 130
        assert capsys.readouterr().err.strip() == "truedepth: interrupted"

    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (
                OSError(errno.ENOSPC, "No space left on device", "/a/b"),
                "the disk is full: /a/b; free some space",
            ),
            (PermissionError(errno.EACCES, "Permission denied", "/a/b"), "Permission denied: /a/b"),
            (MemoryError("17 GB"), "out of memory (17 GB); use a smaller model"),
            (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory; use a smaller model"),
            (
                ZeroDivisionError("division by zero"),
                "a bug in truedepth: ZeroDivisionError: division by zero",
            ),
        ],
    )
    def test_others(
        self,
        error: Exception,
        message: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert run_raising(monkeypatch, error) == 1
        captured = capsys.readouterr().err
        assert captured.startswith("truedepth: error: ")
        assert message in captured
        assert "Traceback" not in captured

    def test_exit_code_of_a_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert run_raising(monkeypatch, click.exceptions.Exit(3)) == 3

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
    def test_full_disk_behind_standard_output(self) -> None:
        command = f"{sys.executable} -m truedepth models > /dev/full"
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("truedepth: error: the disk is full")
        assert "Traceback" not in done.stderr

    def test_reader_that_goes_away(self) -> None:
        """`truedepth models | true`, with a reader that is surely gone when the output comes."""
        reading, writing = os.pipe()
        os.close(reading)
        command = [sys.executable, "-m", "truedepth", "models"]
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
        os.close(writing)
        assert done.returncode == 1
        assert done.stderr == ""
