"""`truedepth train`: what it prints, and its live display."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from rich.console import Console

from truedepth.cli.show import command as show
from truedepth.cli.train import command
from truedepth.cli.training_display import as_line, render
from truedepth.errors import UsageError
from truedepth.training.trainer.pace import Snapshot


@pytest.fixture
def recipe(tiny_folder: Path, plain_kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("truedepth.training.run.read_bandwidth", lambda device: 1e9)
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 40, encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    fields = {
        "kind": "plain",
        "model": {"name": str(tiny_folder), "device": "cpu"},
        "data": {"train": [{"file": str(text)}], "held_out": [{"file": str(text)}], "length": 64},
        "steps": 2,
        "batch": 2,
        "logging": {"log_every": 1},
    }
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    return path


def test_prints_figures_and_where_the_report_is(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = CliRunner().invoke(command, ["plain", str(recipe), "-o", str(folder)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "its loss on held-out text went from" in " ".join(result.stdout.split())
    assert f"The trained model: {folder / 'model'}" in result.stdout.replace("\n", "")
    assert f"The report: {folder / 'report.html'}" in result.stdout.replace("\n", "")
    assert "step" in (folder / "report.html").read_text(encoding="utf-8")
    assert "step 1 of 2: loss" in result.stderr
    again = CliRunner().invoke(command, ["plain", str(recipe), "-o", str(folder), "--resume", "--json"])
    data = json.loads(again.stdout)
    assert data["steps"] == 2 and data["kind"] == "plain"
    shown = CliRunner().invoke(show, [str(folder)], catch_exceptions=False).stdout
    assert "its loss on held-out text went from" in " ".join(shown.split()) and "The report: " in shown
    assert json.loads(CliRunner().invoke(show, [str(folder), "--json"]).stdout) == data


def test_lists_kinds_without_importing_them(plain_kind: Any) -> None:
    result = CliRunner().invoke(command, ["--help"])
    assert "plain" in result.stdout and "Train all of a model." in result.stdout
    assert "docs/training.md" in CliRunner().invoke(command, ["plain", "--help"]).stdout


def test_a_recipe_that_is_not_there(plain_kind: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*none.yaml: No such file"):
        CliRunner().invoke(
            command, ["plain", str(tmp_path / "none.yaml"), "-o", str(tmp_path / "run")], catch_exceptions=False
        )
    assert not (tmp_path / "run").exists()


FIGURES = {
    "loss": 3.21,
    "learning_rate": 3e-5,
    "loss_exit_2": 4.5,
    "eval_loss": 3.3,
    "eval_loss_exit_2": 4.75,
    "eval_agreement_exit_2": 0.25,
    "tokens_per_second": 812.0,
}


class TestDisplay:
    def shown(self, snapshot: Snapshot) -> list[str]:
        console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(render(snapshot))
        return [line.rstrip() for line in console.export_text().splitlines()]

    def test_exits_in_rows(self) -> None:
        lines = self.shown(Snapshot(120, 1000, 812.0, 700.0, FIGURES))
        assert lines[0].startswith("step 120 of 1,000") and lines[0].endswith("812 tokens/s, 11 min 40 s left")
        assert lines[1].split() == ["loss", "held-out", "loss", "held-out"]
        assert lines[2].split() == ["training", "3.210", "3.300"]
        assert lines[3].split() == ["exit", "2", "4.500", "4.750", "25.0", "%"]
        assert lines[4] == "learning rate 3.0e-5"

    def test_before_anything_is_known(self) -> None:
        assert self.shown(Snapshot(0, 10, 0.0, 0.0, {}))[0].endswith("beginning")

    def test_as_a_line(self) -> None:
        line = as_line(Snapshot(120, 1000, 812.0, 700.0, FIGURES))
        assert line == (
            "step 120 of 1000: loss 3.210, loss exit 2 4.500, eval loss 3.300, eval loss exit 2 4.750, "
            "eval agreement exit 2 25 %; 812 tokens/s, 11 min 40 s left"
        )
