"""Writing results so that a crash, a full disk or a second run never leaves half a file behind.

What is written goes into a folder of its own beside the output first, `.NAME.RANDOM.part`, which is locked as long as
somebody writes there. The next run to the same output deletes those that nobody holds: a killed process left them.
"""

from __future__ import annotations

import errno
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from truedepth.errors import OutputError
from truedepth.records.messages import listed

CONTENTS = ".written-by-truedepth"
"""In a folder that was written as a whole: the names of its files, one a line."""
_LOCK, _EARLIER = "lock", "earlier"
_BYTES = 4
"""Of the random part of a name, in hexadecimal digits."""

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

    An earlier file of that name is replaced: see `require_new`.

    Raises:
        OutputError: `path` is a folder, or something in the block could not be written.
    """
    if path.is_dir():
        raise output_error(path, OSError(errno.EISDIR, os.strerror(errno.EISDIR)))
    with _aside(path) as aside:
        yield aside


@contextmanager
def folder_written_aside(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill, which becomes `folder` when the block ends well, and is deleted otherwise.

    Args:
        overwrite: an earlier one is replaced, if in it is nothing but what this function has written.

    Raises:
        OutputError: there is something that is not replaced, or something in the block could not be written.
    """

    def require() -> None:
        require_new(folder, overwrite=overwrite)
        if folder.exists():
            _require_replaceable(folder)

    require()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error
    with _aside(folder) as aside:
        aside.mkdir()
        yield aside
        (aside / CONTENTS).write_text("".join(f"{name}\n" for name in _names(aside)), encoding="utf-8")
        require()  # somebody else may have written there meanwhile


def require_new(output: Path, *, overwrite: bool) -> None:
    """Refuse an output that is there already, before any work starts; with `overwrite` take it.

    Raises:
        OutputError: it is there.
    """
    if not overwrite and (output.exists() or output.is_symlink()):
        raise OutputError(f"{output} exists already; choose another name, or replace it with --overwrite")


def _require_replaceable(folder: Path) -> None:
    """Refuse a folder in which is more than what truedepth has written as a whole."""
    contents = folder / CONTENTS
    if folder.is_symlink() or not contents.is_file():
        raise OutputError(
            f"{folder} is not a folder that truedepth has written as a whole, and is not replaced; choose another "
            "name, or delete it yourself"
        )
    written = {*contents.read_text(encoding="utf-8").splitlines(), CONTENTS}
    if others := [name for name in _names(folder) if name not in written]:
        raise OutputError(
            f"{folder} is not replaced: truedepth has not written {listed(others)} in it; choose another name, or "
            "move what you need out of it"
        )


def usual_modes(folder: Path) -> None:
    """Let all files in a folder be read and written by whom the umask lets: safetensors lets their owner only."""
    mode = folder.stat().st_mode & 0o666
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink() and file.stat().st_mode & 0o777 != mode:
            file.chmod(mode)


def _names(folder: Path) -> list[str]:
    return sorted(str(entry.relative_to(folder)) for entry in folder.rglob("*") if not entry.is_dir())


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    try:
        _sweep(path)
        with _part(path) as part:
            yield part / path.name
            usual_modes(part)
            _put_in_place(part, path)
    except OSError as error:
        raise output_error(path, error) from error


@contextmanager
def _part(path: Path) -> Iterator[Path]:
    """A locked folder beside `path` that is deleted at the end."""
    name = f".{path.name}.{secrets.token_hex(_BYTES)}"
    new, part = path.with_name(f"{name}.new"), path.with_name(f"{name}.part")
    new.mkdir()
    try:
        with FileLock(new / _LOCK):
            new.rename(part)  # not before it is locked, so that nobody takes it for a killed process's
            yield part
    finally:
        for folder in (new, part):
            shutil.rmtree(folder, ignore_errors=True)


def _sweep(path: Path) -> None:
    """Delete what killed processes left of this output."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 2 * _BYTES}.part"):
        with suppress(Timeout, OSError), FileLock(part / _LOCK, timeout=0):
            if (part / _EARLIER).exists() and not path.exists():
                (part / _EARLIER).rename(path)  # killed between the two renamings of `_put_in_place`
            shutil.rmtree(part, ignore_errors=True)


def _put_in_place(part: Path, path: Path) -> None:
    aside, earlier = part / path.name, part / _EARLIER
    if not path.is_dir():
        aside.replace(path)
        return
    path.rename(earlier)
    try:
        aside.replace(path)
    except BaseException:
        earlier.rename(path)
        raise


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
