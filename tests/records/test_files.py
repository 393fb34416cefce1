"""Writing files whole or not at all, and refusing output folders before any work starts."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from truedepth.errors import OutputError
from truedepth.records.files import prepare_output, write_atomic


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
