"""What an interrupted job has already found out: a file of JSON lines, one for each figure that took time.

A resumed job runs from its start again and finds its figures here instead of measuring them, so it takes the same
decisions, without the program having to store where it was. A line that was cut off is ignored.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from truedepth.errors import OutputError
from truedepth.records.files import output_error
from truedepth.records.messages import one_line


class Figures(dict[str, Any]):
    """Figures of one kind, by key. What is set is on disk at once: plain numbers, strings, lists and dicts."""

    def __init__(self, known: Mapping[str, Any], keep: Callable[[str, Any], None]) -> None:
        super().__init__(known)
        self._keep = keep

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self._keep(key, value)


class Journal:
    """Figures by kind and key, on disk as soon as they are known.

    Args:
        path: the file; it is created, or continued if it exists.
        subject: what the figures are about. A file about something else is refused.

    Raises:
        OutputError: the file is about something else, or cannot be read or written.
    """

    def __init__(self, path: Path, subject: dict[str, Any]) -> None:
        self._path = path
        self._seconds_before = 0.0
        self._started = time.monotonic()
        lines = self._read()
        if not lines:
            self._write({"subject": subject})
        elif lines[0]["subject"] != subject:
            raise OutputError(_difference(path, lines[0]["subject"], subject))
        known: dict[str, dict[str, Any]] = {}
        for line in lines[1:]:
            try:
                known.setdefault(line["kind"], {})[line["key"]] = line["value"]
                self._seconds_before = float(line["seconds"])
            except (LookupError, TypeError, ValueError) as error:
                raise self._damaged(error) from None
        self._kinds = {kind: Figures(figures, partial(self._keep, kind)) for kind, figures in known.items()}

    @property
    def seconds(self) -> float:
        """How long the job has run, over all its parts."""
        return self._seconds_before + time.monotonic() - self._started

    def of_kind(self, kind: str) -> Figures:
        """All figures of a kind, by key."""
        return self._kinds.setdefault(kind, Figures({}, partial(self._keep, kind)))

    def remember(self, kind: str, key: str, find: Callable[[], Any]) -> Any:
        """The figure of that kind and key; `find` is called only where it is not known yet."""
        figures = self.of_kind(kind)
        if key not in figures:
            figures[key] = find()
        return figures[key]

    def _keep(self, kind: str, key: str, value: Any) -> None:
        self._write({"kind": kind, "key": key, "value": value, "seconds": round(self.seconds, 3)})

    def _read(self) -> list[dict[str, Any]]:
        """The whole lines; what follows the last of them is cut off the file."""
        try:
            data = self._path.read_bytes() if self._path.exists() else b""
            whole = data[: data.rfind(b"\n") + 1]
            if whole != data:
                os.truncate(self._path, len(whole))
            lines = [json.loads(line) for line in whole.splitlines()]
        except OSError as error:
            raise output_error(self._path, error) from error
        except (ValueError, RecursionError) as error:
            raise self._damaged(error) from None
        if not all(isinstance(line, dict) for line in lines) or (
            lines and not isinstance(lines[0].get("subject"), dict)
        ):
            raise self._damaged(ValueError("a line has no figure"))
        return lines

    def _damaged(self, error: Exception) -> OutputError:
        return OutputError(f"{self._path} is damaged ({one_line(error)}); start again in another folder")

    def _write(self, line: dict[str, Any]) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise output_error(self._path, error) from error


def _difference(path: Path, before: dict[str, Any], now: dict[str, Any]) -> str:
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    details = ", ".join(f"{key} was {before.get(key)!r} and is {now.get(key)!r}" for key in changed)
    return (
        f"the run in {path.parent} cannot be resumed with other settings: {details}; "
        "give the same settings, or another folder"
    )
