"""Writing files whole or not at all, and refusing output folders before any work starts."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from truedepth.errors import OutputError
from truedepth.records.files import (
    CONTENTS,
    folder_written_aside,
    prepare_output,
    require_new,
    write_atomic,
    written_aside,
)


def refuse(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Let the creation of files fail, as in a read-only folder: permissions would not bind the superuser."""

    def refused(path: Path, *_: object) -> None:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "open", refused)
    monkeypatch.setattr(Path, "write_bytes", refused)


READ_ONLY = pytest.mark.parametrize(
    ("code", "remedy"), [(errno.EACCES, "you may not write there"), (errno.EROFS, "the file system is read-only")]
)


def fail_with(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Let every flush to the disk fail, as on a full disk."""

    def fsync(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)


class TestWriteAtomic:
    def test_text_and_bytes(self, tmp_path: Path) -> None:
        write_atomic(tmp_path / "a", "grün\n")
        write_atomic(tmp_path / "b", b"\xff\x00")
        assert (tmp_path / "a").read_bytes() == b"gr\xc3\xbcn\n"
        assert (tmp_path / "b").read_bytes() == b"\xff\x00"

    def test_replaces_and_leaves_nothing_aside(self, tmp_path: Path) -> None:
        for content in ("first", "second"):
            write_atomic(tmp_path / "a", content)
        assert (tmp_path / "a").read_text() == "second"
        assert os.listdir(tmp_path) == ["a"]

    def test_permissions_follow_the_umask(self, tmp_path: Path) -> None:
        plain = tmp_path / "plain"
        plain.touch()
        write_atomic(tmp_path / "a", "x")
        assert (tmp_path / "a").stat().st_mode == plain.stat().st_mode

    @pytest.mark.parametrize(
        ("code", "remedy"),
        [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "quota"), (errno.EIO, "Input/output error")],
    )
    def test_a_failed_write_keeps_the_old_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
    ) -> None:
        target = tmp_path / "a"
        write_atomic(target, "old")
        fail_with(monkeypatch, code)
        with pytest.raises(OutputError, match=f"cannot write {target}: .*{remedy}"):
            write_atomic(target, "new")
        assert target.read_text() == "old"
        assert os.listdir(tmp_path) == ["a"]

    def test_folder_does_not_exist(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="its folder does not exist"):
            write_atomic(tmp_path / "none" / "a", "x")

    def test_target_is_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="it is a folder"):
            write_atomic(tmp_path, "x")
        assert os.listdir(tmp_path) == []

    def test_part_of_the_path_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match="is a file, not a folder"):
            write_atomic(tmp_path / "file" / "a", "x")

    @READ_ONLY
    def test_read_only_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str) -> None:
        refuse(monkeypatch, code)
        with pytest.raises(OutputError, match=remedy):
            write_atomic(tmp_path / "a", "x")


class TestPrepareOutput:
    def test_creates_with_parents(self, tmp_path: Path) -> None:
        folder = tmp_path / "a" / "b"
        prepare_output(folder)
        assert os.listdir(folder) == []

    def test_an_empty_folder_will_do(self, tmp_path: Path) -> None:
        prepare_output(tmp_path)
        assert os.listdir(tmp_path) == []

    def test_refuses_a_folder_with_something_in_it(self, tmp_path: Path) -> None:
        (tmp_path / "mine").touch()
        with pytest.raises(OutputError, match=r"not empty; .*--resume.*another folder"):
            prepare_output(tmp_path)
        assert os.listdir(tmp_path) == ["mine"]

    def test_resume_takes_any_folder(self, tmp_path: Path) -> None:
        (tmp_path / "state").touch()
        prepare_output(tmp_path, resume=True)
        prepare_output(tmp_path / "new", resume=True)
        assert sorted(os.listdir(tmp_path)) == ["new", "state"]

    def test_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "file"
        file.touch()
        with pytest.raises(OutputError, match=f"{file} is a file; give a folder"):
            prepare_output(file)

    def test_below_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match="is a file, not a folder"):
            prepare_output(tmp_path / "file" / "run")

    @READ_ONLY
    def test_read_only_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str) -> None:
        refuse(monkeypatch, code)
        with pytest.raises(OutputError, match=remedy):
            prepare_output(tmp_path)

    @pytest.mark.parametrize(
        ("code", "remedy"), [(errno.EROFS, "read-only; choose another"), (errno.ENOSPC, "the disk is full")]
    )
    def test_a_file_system_that_takes_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
    ) -> None:
        def write_bytes(*_: object) -> int:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(Path, "write_bytes", write_bytes)
        with pytest.raises(OutputError, match=remedy):
            prepare_output(tmp_path)


class TestOutputs:
    """What a command writes as a whole: a file or a folder under a name that the user gives."""

    def test_what_exists_is_taken_only_when_asked(self, tmp_path: Path) -> None:
        for there in (tmp_path / "file", tmp_path / "link", tmp_path):
            (tmp_path / "file").touch()
            (tmp_path / "link").unlink(missing_ok=True)
            (tmp_path / "link").symlink_to("nowhere")
            with pytest.raises(OutputError, match=rf"{there} exists already; .*--overwrite"):
                require_new(there, overwrite=False)
            require_new(there, overwrite=True)
        require_new(tmp_path / "new", overwrite=False)

    def test_a_folder_of_ours_is_replaced_as_a_whole(self, tmp_path: Path) -> None:
        for name in ("first", "second"):
            with folder_written_aside(tmp_path / "out", overwrite=True) as folder:
                (folder / name).touch()
        assert sorted(os.listdir(tmp_path / "out")) == [CONTENTS, "second"]
        assert os.listdir(tmp_path) == ["out"]

    def test_nothing_of_somebody_elses_is_deleted(self, tmp_path: Path) -> None:
        with folder_written_aside(tmp_path / "out") as folder:
            (folder / "ours").touch()
        (tmp_path / "out" / "sub").mkdir()
        (tmp_path / "out" / "sub" / "mine").touch()
        (tmp_path / "other").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "out")
        for name, message in (("out", "not written sub/mine in it"), ("other", "delete it"), ("link", "delete it")):
            with pytest.raises(OutputError, match=message), folder_written_aside(tmp_path / name, overwrite=True):
                raise AssertionError("it should not begin")
        assert (tmp_path / "out" / "sub" / "mine").exists()

    def test_what_appears_meanwhile_stays(self, tmp_path: Path) -> None:
        def write() -> None:
            with folder_written_aside(tmp_path / "out"):
                (tmp_path / "out").mkdir()

        with pytest.raises(OutputError, match="exists already"):
            write()
        assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == []

    def test_a_failure_keeps_the_earlier_folder(self, tmp_path: Path) -> None:
        def write(content: str, error: BaseException | None = None) -> None:
            with folder_written_aside(tmp_path / "out", overwrite=True) as folder:
                (folder / "a").write_text(content)
                if error:
                    raise error

        write("old")
        for error in (KeyboardInterrupt(), OSError(errno.ENOSPC, "full")):
            with pytest.raises((KeyboardInterrupt, OutputError)):
                write("new", error)
        assert (tmp_path / "out" / "a").read_text() == "old"
        assert os.listdir(tmp_path) == ["out"]

    def test_modes_follow_the_umask(self, tmp_path: Path) -> None:
        before = os.umask(0o027)
        try:
            with folder_written_aside(tmp_path / "out") as folder:
                for private in (folder / "weights", folder / "sub" / "weights"):
                    private.parent.mkdir(exist_ok=True)
                    private.touch(mode=0o600)
            with written_aside(tmp_path / "file") as file:
                file.touch(mode=0o600)
        finally:
            os.umask(before)
        files = [tmp_path / "file", tmp_path / "out" / "weights", tmp_path / "out" / "sub" / "weights"]
        assert [oct(path.stat().st_mode & 0o777) for path in (*files, tmp_path / "out")] == ["0o640"] * 3 + ["0o750"]

    def test_what_a_killed_process_left_goes_with_the_next_run(self, tmp_path: Path) -> None:
        """And what a live one is writing stays, and so does what is of another output."""
        code = (
            "import os, sys, pathlib; from truedepth.records.files import folder_written_aside\n"
            "with folder_written_aside(pathlib.Path(sys.argv[1])) as folder:\n"
            "    (folder / 'half').touch(); print('there', flush=True); sys.stdin.read()"
        )
        start = partial(subprocess.Popen, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        outputs = [tmp_path / name for name in ("out", "out", "out.gguf")]
        killed, live, other = (start([sys.executable, "-c", code, str(output)]) for output in outputs)
        for process in (killed, live, other):
            assert process.stdout.readline() == "there\n"
        killed.kill()
        other.kill()
        killed.communicate()
        other.communicate()
        write_atomic(tmp_path / "out.txt", "x")
        assert len(list(tmp_path.glob(".out.*.part"))) == 3
        with folder_written_aside(tmp_path / "out"):
            assert len(list(tmp_path.glob(".out.*.part"))) == 3  # the live one's, ours, and the other output's
        assert len(list(tmp_path.glob(".out.gguf.*.part"))) == 1
        live.communicate("")
        assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".part") == ["out", "out.txt"]
        assert len(list(tmp_path.glob(".*.part"))) == 1
