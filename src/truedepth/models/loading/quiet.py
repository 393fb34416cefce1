"""transformers without its progress bars and warnings, where failures are raised as our own errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Within it transformers logs errors only and draws no progress bars; afterwards all is as before."""
    logging: Any = import_module("transformers.utils.logging")
    # transformers switches the bars of the hub's library along with its own.
    hub: Any = import_module("huggingface_hub.utils")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub_bars = not hub.are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if hub_bars:
            hub.enable_progress_bars()
        else:
            hub.disable_progress_bars()
