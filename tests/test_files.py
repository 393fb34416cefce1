"""Writing files whole or not at all, and refusing output folders before any work starts."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from truedepth.errors import OutputError
from truedepth.files import prepare_output, write_atomic

# The superuser may write to a read-only folder.
needs_permissions = pytest.mark.skipif(os.geteuid() == 0, reason="file permissions do not bind this user")


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

    @needs_permissions
    def test_read_only_folder(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        with pytest.raises(OutputError, match="you may not write there"):
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

    @needs_permissions
    def test_read_only_folder(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        with pytest.raises(OutputError, match="you may not write there"):
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
