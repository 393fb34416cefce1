"""What --plan, --form and --prefill mean, and how examples and JSON are printed."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from truedepth.cli.options import examples, loading_options, plan_options, print_json, resolve_plan
from truedepth.errors import PlanError
from truedepth.plan import DepthPlan
from truedepth.plan_file import save_plan

SAVED = DepthPlan.parse("0-3 (4|5) 7", 8, form="par", prefill="full")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    save_plan(SAVED, tmp_path / "plan.yaml")
    return tmp_path


class TestResolvePlan:
    def test_none_is_every_layer(self) -> None:
        assert resolve_plan(None, 8) == DepthPlan.full(8)

    def test_notation(self) -> None:
        assert resolve_plan("0-3 (4|5)", 8) == DepthPlan.parse("0-3 (4|5)", 8)
        assert resolve_plan("0 (1|2)", 8, "par", "full") == DepthPlan.parse("0 (1|2)", 8, "par", "full")

    def test_file_and_folder(self, run_folder: Path) -> None:
        assert resolve_plan(str(run_folder), 8) == SAVED
        assert resolve_plan(str(run_folder / "plan.yaml"), 8) == SAVED

    def test_options_override_the_file(self, run_folder: Path) -> None:
        plan = resolve_plan(str(run_folder), 8, "lp", "plan")
        assert (plan.stages, plan.form, plan.prefill) == (SAVED.stages, "lp", "plan")

    def test_other_number_of_layers_names_both(self, run_folder: Path) -> None:
        with pytest.raises(PlanError, match=r"is for 8 layers, but the model has 30"):
            resolve_plan(str(run_folder), 30)

    @pytest.mark.parametrize("text", ["0-3 (4,5)", "0-3, 5", "(1|x)", "0..4", "3a"])
    def test_misspelt_notation_names_the_token(self, text: str) -> None:
        with pytest.raises(PlanError, match=r"token '.*' at column"):
            resolve_plan(text, 8)

    @pytest.mark.parametrize("text", ["plan.yaml", "0.yaml", "2024-run/plan.yaml", "run", "./run"])
    def test_missing_file_is_called_missing(self, text: str) -> None:
        with pytest.raises(PlanError, match="there is no plan file or run"):
            resolve_plan(text, 8)

    def test_a_folder_whose_name_begins_with_a_number(self, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(run_folder)
        Path("2nd-run").mkdir()
        save_plan(SAVED, "2nd-run/plan.yaml")
        assert resolve_plan("2nd-run", 8) == SAVED

    def test_empty(self) -> None:
        with pytest.raises(PlanError, match="the plan is empty"):
            resolve_plan("", 8)


def test_shared_options_become_keyword_arguments() -> None:
    got = {}

    @click.command()
    @plan_options
    @loading_options
    def command(**values: object) -> None:
        got.update(values)

    CliRunner().invoke(command, ["--plan", "0-3", "--form", "par", "--device", "cpu"], catch_exceptions=False)
    assert got == {
        "plan": "0-3",
        "form": "par",
        "prefill": None,
        "dtype": "auto",
        "device": "cpu",
        "trust_remote_code": False,
    }


def test_examples_are_not_rewrapped() -> None:
    line = "truedepth optimize smollm2-135m --speedup 1.25 --output a-folder-with-a-rather-long-name --resume"
    command = click.Command("x", epilog=examples("short", line))
    out = CliRunner().invoke(command, ["--help"]).output
    assert f"  Examples:\n    short\n    {line}\n" in out


def test_json_keeps_order_and_letters(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"b": "é", "a": Path("x/y")})
    out = capsys.readouterr().out
    assert json.loads(out) == {"b": "é", "a": "x/y"}
    assert out.index('"b": "é"') < out.index('"a"')
