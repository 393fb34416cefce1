"""Writing results so that a crash, a full disk or a second run never leaves half a file behind."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from truedepth.errors import OutputError

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space, or write to another disk",
    errno.EDQUOT: "your disk quota is used up; free some space, or write to another disk",
    errno.EFBIG: "the file would be larger than the file system allows; write to another disk",
    errno.EACCES: "you may not write there; choose a folder of yours",
    errno.EPERM: "you may not write there; choose a folder of yours",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.ENOENT: "its folder does not exist; create it first, or choose another place",
    errno.ENOTDIR: "part of the path is a file, not a folder; choose another place",
    errno.EISDIR: "it is a folder; give the name of a file",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


def output_error(path: Path, error: OSError) -> OutputError:
    """The error to raise when writing `path` failed with `error`: what happened and what to do."""
    reason = _REASONS.get(error.errno or 0, f"{error.strerror or error}; choose another place")
    return OutputError(f"cannot write {path}: {reason}")


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file or nothing: aside first, flushed to the disk, then renamed over `path`.

    Args:
        content: text is written as UTF-8.

    Raises:
        OutputError: the file cannot be written; an earlier file of that name is left as it was.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    with written_aside(path) as aside, aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """The name of a file to write, which becomes `path` when the block ends well, and is deleted otherwise.

    Raises:
        OutputError: `path` is a folder, or something in the block could not be written.
    """
    if path.is_dir():
        raise output_error(path, OSError(errno.EISDIR, os.strerror(errno.EISDIR)))
    with _aside(path) as aside:
        yield aside


@contextmanager
def folder_written_aside(folder: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `folder` when the block ends well, and is deleted otherwise.

    Raises:
        OutputError: `folder` exists already, or something in the block could not be written.
    """
    if folder.exists() or folder.is_symlink():
        raise OutputError(f"{folder} exists already; choose another folder, or delete it")
    with _aside(folder) as aside:
        aside.mkdir(parents=True)
        yield aside


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            yield aside
            aside.replace(path)
        finally:
            if aside.is_dir():
                shutil.rmtree(aside, ignore_errors=True)
            else:
                aside.unlink(missing_ok=True)
    except OSError as error:
        raise output_error(path, error) from error


def prepare_output(folder: Path, *, resume: bool = False) -> None:
    """Make sure that `folder` exists, is ours to fill, and can be written, before any work starts.

    Args:
        resume: continue in a folder that an interrupted run left; an empty or missing one is fine too.

    Raises:
        OutputError: it is a file, cannot be created or written, or is not empty and `resume` is false.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not resume and any(folder.iterdir()):
            raise OutputError(
                f"the output folder {folder} is not empty; continue an interrupted run with --resume, "
                "choose another folder, or delete it"
            )
        probe = folder / f".write-test.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except FileExistsError:
        raise OutputError(f"{folder} is a file; give a folder to write to") from None
    except OSError as error:
        raise output_error(folder, error) from error
