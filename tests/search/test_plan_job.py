"""The main job on a tiny model, planned for made-up hardware so that nothing depends on this machine's speed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from truedepth.cli.optimize import command
from truedepth.errors import OutputError, SearchError, TextError, UsageError
from truedepth.plan.plan_file import PLAN_FILE, load_plan
from truedepth.records.recipe import RECIPE_FILE
from truedepth.report import REPORT_FILE
from truedepth.search.job import JOURNAL_FILE
from truedepth.search.plan_job import PEERS, optimize
from truedepth.search.plan_results import RESULTS_FILE, Results
from truedepth.search.recipe import Recipe, Windows


@pytest.fixture(scope="module")
def recipe(tiny_folder: Path, made_up_hardware: Path) -> Recipe:
    windows = Windows(calibration=1, validation=1, test=1)
    return Recipe(model=str(tiny_folder), target="speedup", value=1.3, hardware=str(made_up_hardware), windows=windows)


@pytest.fixture(scope="module")
def finished(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    folder = tmp_path_factory.mktemp("finished")
    return optimize(recipe, folder), folder


def test_writes_everything_and_it_reads_back(finished: tuple[Results, Path], recipe: Recipe) -> None:
    results, folder = finished
    assert Results.load(folder / RESULTS_FILE) == results
    assert load_plan(folder) == results.plan.to_plan()
    assert Recipe.load(folder / RECIPE_FILE) == recipe
    data = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
    assert data["schema_version"] == 2
    assert {"notation", "stages", "effective_depth", "layers_used", "form"} <= data["plan"].keys()
    assert {"method", "notation", "speedup", "perplexity"} <= data["peers"][0].keys()


def test_reaches_the_target_and_names_the_peers(finished: tuple[Results, Path]) -> None:
    results, _ = finished
    depth = results.plan.effective_depth
    assert results.speedup.predicted >= 1.3
    assert results.speedup.measured is None
    peers = {peer.method: peer for peer in results.peers}
    assert {"block-influence", "angular-distance", "greedy-removal", "unified-skipping"} <= peers.keys()
    assert all(f.speedup <= 1.3 for f in results.frontier[: 6 - depth])
    assert peers["unified-skipping"].prefill == "full"
    assert len(results.influence) == 6


@contextmanager
def _counted(count: Callable[[], None]) -> Iterator[Callable[[], None]]:
    yield count


def interrupting(after: int) -> Callable[[str, int], Any]:
    """A progress that counts `after` steps and then interrupts, as Ctrl-C would."""
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1
        if steps > after:
            raise KeyboardInterrupt

    return lambda description, total: _counted(count)


@pytest.mark.parametrize("after", [0, 1, 7, 8, 12, 20, 30, 33, 36])
def test_an_interrupted_run_resumes_to_the_same_results(
    after: int, recipe: Recipe, finished: tuple[Results, Path], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        optimize(recipe, tmp_path, progress=interrupting(after))
    assert not (tmp_path / RESULTS_FILE).exists()
    resumed = optimize(recipe, tmp_path, resume=True)
    passing = {"created", "seconds", "machine"}
    assert resumed.model_dump(exclude=passing) == finished[0].model_dump(exclude=passing)


def test_resuming_with_other_settings_is_refused(
    finished: tuple[Results, Path], recipe: Recipe, tmp_path: Path
) -> None:
    _, folder = finished
    (tmp_path / JOURNAL_FILE).write_bytes((folder / JOURNAL_FILE).read_bytes())
    other = recipe.model_copy(update={"value": 1.5})
    with pytest.raises(OutputError, match=r"other settings: value was 1\.3 and is 1\.5"):
        optimize(other, tmp_path, resume=True)


def test_a_folder_in_use_is_refused(recipe: Recipe, finished: tuple[Results, Path]) -> None:
    with pytest.raises(OutputError, match=r"not empty.*--resume"):
        optimize(recipe, finished[1])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"value": 1.0}, UsageError, "more than 1"),
        ({"value": 50.0}, SearchError, r"cannot be reached.*largest is \d"),
        ({"hardware": "abacus"}, UsageError, "no hardware profile 'abacus'"),
        ({"text": Path("missing.txt")}, TextError, r"missing\.txt"),
        ({"target": "depth", "value": 6}, SearchError, "choose 1 to 5"),
    ],
)
def test_what_cannot_be_done_is_said(
    change: dict[str, Any], error: type[Exception], message: str, recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        optimize(recipe.model_copy(update=change), tmp_path)
    assert not (tmp_path / RESULTS_FILE).exists()


def test_methods_that_cannot_go_as_deep_are_left_out(recipe: Recipe, tmp_path: Path) -> None:
    """A single stage: pairs leave at least half of the layers, and unified skipping keeps the first and the last."""
    results = optimize(recipe.model_copy(update={"target": "depth", "value": 1}), tmp_path)
    assert results.plan.effective_depth == 1
    assert {peer.method for peer in results.peers} == set(PEERS) - {"layer-parallel", "unified-skipping"}


def test_the_command_prints_the_table_and_where_the_report_is(recipe: Recipe, tmp_path: Path) -> None:
    arguments = [recipe.model, "--depth", "4", "--windows", "1,1,1", "--hardware", str(recipe.hardware)]
    result = CliRunner().invoke(command, [*arguments, "-o", str(tmp_path / "run")], catch_exceptions=False)
    assert result.exit_code == 0
    assert "greedy-removal" in result.stdout
    report = tmp_path / "run" / REPORT_FILE
    assert str(report) in result.stdout.replace("\n", "")
    assert load_plan(report.parent).notation in report.read_text(encoding="utf-8")


def test_the_command_prints_json(recipe: Recipe, tmp_path: Path) -> None:
    arguments = [recipe.model, "--depth", "4", "--layers-parallel-only", "--form", "par", "--windows", "1,1,1"]
    options = ["--hardware", str(recipe.hardware), "-o", str(tmp_path / "run"), "--json"]
    result = CliRunner().invoke(command, arguments + options, catch_exceptions=False)
    data = json.loads(result.stdout)
    assert data["plan"]["layers_used"] == list(range(6))
    assert (data["plan"]["form"], data["plan"]["effective_depth"]) == ("par", 4)
    assert load_plan(tmp_path / "run" / PLAN_FILE).form == "par"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smollm2-135m"], "exactly one target"),
        (["smollm2-135m", "--speedup", "1.2", "--depth", "20"], "exactly one target"),
        (["--speedup", "1.2"], "no model"),
        (["smollm2-135m", "--recipe", "recipe.yaml"], "not both"),
        (["smollm2-135m", "--speedup", "1.2", "--skip-only", "--form", "lp"], "--skip-only"),
        (["smollm2-135m", "--speedup", "1.2", "--windows", "1,2"], "three numbers"),
    ],
)
def test_wrong_usage_says_what_to_give(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(command, [*arguments, "-o", str(tmp_path / "run")])
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)
    assert not (tmp_path / "run").exists()
