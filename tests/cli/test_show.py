import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from truedepth.cli.show import command
from truedepth.errors import PlanError, TruedepthError, UsageError
from truedepth.plan import DepthPlan
from truedepth.plan.plan_file import save_plan
from truedepth.search.plan_results import Results

SAMPLE = Path(__file__).parents[1] / "report" / "sample_results.json"
NOTATION = "0-9 (10|11) 12-19 (20|21) (22|23) 24 26 28 29"


def show(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run's folder."""
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(SAMPLE, folder / "results.json")
    save_plan(DepthPlan.parse(NOTATION, 30, "par"), folder / "plan.yaml")
    return folder


def test_a_run_prints_its_table_its_plan_and_where_the_report_is(run: Path) -> None:
    (run / "report.html").touch()
    output = show(run).output
    assert "decodes 1.27 times as fast" in output
    assert "greedy-removal" in output
    assert "╭10╮" in output and f"\n{NOTATION}\n" in output
    assert f"The report: {run / 'report.html'}" in output


def test_a_report_that_is_not_there_is_not_promised(run: Path) -> None:
    assert "report.html" not in show(run).output


def test_a_run_as_json_is_its_results(run: Path) -> None:
    assert json.loads(show(run, "--json").output) == json.loads(SAMPLE.read_text(encoding="utf-8"))


def test_an_infinite_perplexity_survives_the_file(run: Path) -> None:
    results = Results.load(run / "results.json")
    broken = results.model_copy(update={"peers": [results.peers[0].model_copy(update={"perplexity": float("inf")})]})
    (run / "results.json").write_text(broken.model_dump_json(), encoding="utf-8")
    assert "infinite" in show(run).output
    assert json.loads(show(run, "--json").output)["peers"][0]["perplexity"] == "Infinity"


def test_a_plan_file(run: Path) -> None:
    output = show(run / "plan.yaml").output
    assert output.startswith(f"{NOTATION}\n") and "╭10╮" in output and "form par" in output


def test_a_plan_file_in_another_form(run: Path) -> None:
    assert "form lp" in show(run / "plan.yaml", "--form", "lp").output


def test_a_notation_as_json_is_the_plan() -> None:
    result = show("0 (1|2)", "--layers", "4", "--form", "par", "--prefill", "full", "--json")
    assert json.loads(result.output) == DepthPlan.parse("0 (1|2)", 4, "par", "full").to_dict()


def test_a_notation_needs_the_number_of_layers() -> None:
    with pytest.raises(UsageError, match="--layers"):
        show("0 (1|2)")


def test_a_wrong_notation_names_the_token() -> None:
    with pytest.raises(PlanError, match=r"token '9' at column 3"):
        show("0 9", "--layers", "4")


def test_a_plan_file_for_another_depth_is_refused(run: Path) -> None:
    with pytest.raises(PlanError, match="30 layers"):
        show(run / "plan.yaml", "--layers", "24")


def test_options_of_a_plan_are_refused_for_a_run(run: Path) -> None:
    with pytest.raises(UsageError, match="finished run"):
        show(run, "--layers", "30")


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(PlanError, match="no 'nowhere'"):
        show("nowhere")


def test_a_run_of_another_schema_is_refused(run: Path) -> None:
    (run / "results.json").write_text("{}", encoding="utf-8")
    with pytest.raises(TruedepthError, match=r"results\.json"):
        show(run)
