"""`truedepth optimize --lossless`, by the real clock: which draft wins is not looked at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from truedepth.cli.optimize import command
from truedepth.cli.show import command as show
from truedepth.errors import UsageError
from truedepth.report import REPORT_FILE
from truedepth.search.draft_results import LOSSLESS_FILE, LosslessResults
from truedepth.search.recipe import LosslessRecipe, Recipe, Windows, load_recipe


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("truedepth.search.draft_job.NEW_TOKENS", 20)
        patch.setattr("truedepth.measuring.step_timing._ROUNDS", 3)
        patch.setattr("truedepth.search.draft_benchmark.read_bandwidth", lambda device: 1e9)
        yield


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "mine.txt"
    file.write_text("The quick brown fox jumps over the lazy dog. " * 20, encoding="utf-8")
    return file


def test_prints_the_table_and_where_the_report_is(tiny_folder: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    arguments = [str(tiny_folder), "--lossless", "--text", str(text), "--windows", "1,1,1", "-o", str(output)]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "exit:" in result.stdout and "No draft pays" in result.stdout  # a single run confirms nothing
    assert str(output / REPORT_FILE) in result.stdout.replace("\n", "")
    recipe = load_recipe(output / "recipe.yaml")
    windows = Windows(calibration=1, validation=1, test=1)
    assert recipe == LosslessRecipe(model=str(tiny_folder), text=text, windows=windows)
    again = [*arguments, "--resume", "--json"]
    repeated = CliRunner().invoke(command, again, catch_exceptions=False)
    data = json.loads(repeated.stdout)
    assert data["best"] == LosslessResults.load(output / LOSSLESS_FILE).to_dict()["best"]
    shown = CliRunner().invoke(show, [str(output)], catch_exceptions=False).stdout
    assert "No draft pays" in shown and data["best"]["draft"]["notation"] in shown
    assert str(output / REPORT_FILE) in shown.replace("\n", "")
    as_json = CliRunner().invoke(show, [str(output), "--json"], catch_exceptions=False).stdout
    assert json.loads(as_json)["best"] == data["best"]


def test_a_recipe_repeats_the_run(tiny_folder: Path, text: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    windows = Windows(calibration=1, validation=1, test=1)
    LosslessRecipe(model=str(tiny_folder), text=text, windows=windows).save(file)
    arguments = ["--recipe", str(file), "-o", str(tmp_path / "run"), "--json"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert json.loads(result.stdout)["text"]["source"] == str(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smollm2-135m", "--lossless", "--speedup", "1.2"], "exactly one target"),
        (["smollm2-135m"], "--lossless"),
        (["--lossless"], "no model"),
        (["smollm2-135m", "--lossless", "--hardware", "a100-nvlink-x2"], "--hardware cannot go with --lossless"),
        (["smollm2-135m", "--lossless", "--skip-only"], "--skip-only cannot go"),
        (["smollm2-135m", "--lossless", "--form", "lp"], "--form cannot go"),
        (["smollm2-135m", "--lossless", "--windows", "0,1,1"], "three numbers"),
    ],
)
def test_wrong_usage_says_what_to_give(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(command, [*arguments, "-o", str(tmp_path / "run")])
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": "m", "target": "lossless", "value": 2}, "unknown field 'value'"),
        ({"model": "m", "target": "lossless", "hardware": "x"}, "unknown field 'hardware'"),
        ({"target": "lossless"}, "the field 'model' is missing"),
        ({"model": "m", "target": "speed", "value": 2}, "the field 'target' is 'speed'"),
        ({"model": "m", "target": "speedup"}, "the field 'value' is missing"),
        ([1], "its fields are model"),
    ],
)
def test_wrong_recipes_are_told_what_is_wrong(content: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        load_recipe(file)


def test_recipes_of_both_kinds_are_read(tmp_path: Path) -> None:
    lossless, shallower = LosslessRecipe(model="m"), Recipe(model="m", target="depth", value=3)
    for number, recipe in enumerate((lossless, shallower)):
        recipe.save(tmp_path / f"{number}.yaml")
        assert load_recipe(tmp_path / f"{number}.yaml") == recipe
    assert lossless.windows == Windows(calibration=8, validation=4, test=8)
    assert shallower.windows == Windows(calibration=3, validation=12, test=12)
