"""What the tests of all reports share: a page as a person reads it, and what a plain terminal shows."""

import io
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs
from rich.console import Console

from truedepth.report import write_report
from truedepth.report.format import TIMES_SIGN

VOID = {"meta", "link", "img", "br", "hr", "input"}
LOADS = {"src", "srcset", "href", "data", "action", "poster", "background"}


class Page(HTMLParser):
    """The page as a person sees it: its text (with x for times), charts, commands.

    Of every page: tags match, nothing is loaded, ids are unique, and labels are headings that exist.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source.replace(get_plotlyjs(), "")
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.labels: list[str] = []
        self.cells: list[tuple[str, str]] = []
        self.charts: list[go.Figure] = []
        self.texts: list[str] = []
        self.codes: list[str] = []
        self._script = ""
        self.feed(self.source)
        self.close()
        assert not self.open, self.open
        assert not self.loads, self.loads
        assert "default-src 'none'" in self.source
        assert len(self.ids) == len(set(self.ids))
        assert set(self.labels) <= set(self.ids)
        self.text = " ".join(" ".join(self.texts).split()).replace(TIMES_SIGN, "x")

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.loads += [f"{tag} {name}" for name in given if name in LOADS]
        self.ids += [given["id"]] if "id" in given else []
        self.labels += [given["aria-labelledby"]] if "aria-labelledby" in given else []
        self.cells += [(given["class"], given["data-tip"])] if "data-tip" in given else []
        if tag == "script":
            self._script = given.get("type", "text/javascript")
        if tag == "code":
            self.codes.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            if self._script == "application/json":
                self.charts.append(go.Figure(json.loads(data)))
        elif self.open[-1:] != ["style"]:
            self.texts.append(data)
            if self.open[-1:] == ["code"]:
                self.codes[-1] += data


@pytest.fixture
def read(tmp_path: Path) -> Callable[[Any], Page]:
    """`read(results)`: the report of these results."""
    return lambda results: Page(write_report(results, tmp_path).read_text(encoding="utf-8"))


@pytest.fixture
def drawn() -> Callable[..., list[str]]:
    """`drawn(renderable)`: what a plain terminal without colour shows, with x for the multiplication sign."""

    def draw(renderable: Any, width: int = 80, encoding: str = "utf-8") -> list[str]:
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        Console(file=stream, width=width, color_system=None).print(renderable)
        stream.flush()
        return stream.buffer.getvalue().decode(encoding).replace(TIMES_SIGN, "x").splitlines()

    return draw
