"""Ending a training between two steps when the user or the system asks for it."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

_SAME = 2.0
"""Seconds within which signals are one request: launchers of several ranks pass Ctrl-C on to those that had it too."""


class Interruption:
    """While it is entered, the first SIGINT (Ctrl-C) or SIGTERM is noted in `asked`; a later one ends at once.

    Outside the main thread, where Python delivers no signals, it does nothing.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.asked = False
        self._since = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        self.asked, self._since = False, 0.0
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self._SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self._since:
            self._since = time.monotonic()
        elif time.monotonic() - self._since >= _SAME:
            raise KeyboardInterrupt
        self.asked = True
