"""`truedepth plan`: methods as subcommands, with their parameters as options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import click
import pytest
from pydantic import Field

from truedepth.cli import main
from truedepth.cli.method_options import options_of, parameters_of
from truedepth.methods import all_methods
from truedepth.methods.base import EvidenceMethod, LayerMethod
from truedepth.plan import DepthPlan
from truedepth.plan.plan_file import load_plan


class Everything(LayerMethod):
    """One parameter of each kind."""

    name: ClassVar[str] = "everything"
    summary: ClassVar[str] = "all kinds of parameters"
    source: ClassVar[str] = "a test"

    count: int = Field(ge=1, description="how many")
    share: float = Field(default=0.5, description="which part")
    how_wide: int | None = Field(default=None, description="if any")
    rule: Literal["one", "two"] = "one"
    loud: bool = False

    def plan(self, num_layers: int) -> DepthPlan:
        return DepthPlan.full(num_layers)


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["plan", *args])
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture
def plan_json(capsys: pytest.CaptureFixture[str]) -> Any:
    """`plan_json(ARGS)`: what `truedepth plan ARGS --json` prints."""

    def make(*args: str) -> dict[str, Any]:
        code = run(*args, "--json")
        captured = capsys.readouterr()
        assert (code, captured.err) == (0, "")
        return dict(json.loads(captured.out))

    return make


class TestPublishedPlans:
    @pytest.mark.parametrize(
        ("speedup", "kept"),
        [
            ("2", [*range(0, 29, 2), 31]),
            ("3", [*range(0, 25, 3), 31]),
            ("5", [0, 6, 12, 18, 24, 31]),
        ],
    )
    def test_unified_skipping(self, plan_json: Any, speedup: str, kept: list[int]) -> None:
        data = plan_json("unified-skipping", "--rule", "published", "--layers", "32", "--speedup", speedup)
        assert data["layers_used"] == kept
        assert data["stages"] == [[layer] for layer in kept]
        assert data["prefill"] == "full"

    def test_layer_parallel(self, plan_json: Any) -> None:
        data = plan_json("layer-parallel", "--layers", "32", "--end", "28", "--delta", "14")
        assert data["effective_depth"] == 25
        assert data["stages"][14:21] == [[layer, layer + 1] for layer in range(14, 28, 2)]
        assert data["form"] == "lp"

    def test_json_is_the_plan_with_its_method(self, plan_json: Any) -> None:
        data = plan_json("early-exit", "--layers", "8", "--exit", "3")
        method = {"method": data.pop("method"), "parameters": data.pop("parameters")}
        assert data == DepthPlan.parse("0-2", 8).to_dict()
        assert method == {"method": "early-exit", "parameters": {"exit": 3}}


class TestOutput:
    def test_text(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("layer-parallel", "--layers", "8", "--end", "6", "--delta", "4") == 0
        out = capsys.readouterr().out
        assert out.startswith("0 1 (2|3) (4|5) 6 7\n")
        assert "effective depth 6; 12 all-reduces" in out
        assert "16 without the plan" in out

    def test_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "plan.yaml"
        assert run("early-exit", "--layers", "8", "--exit", "3", "-o", str(file)) == 0
        assert capsys.readouterr().out.startswith("0-2\n")
        assert load_plan(file) == DepthPlan.parse("0-2", 8)
        assert file.read_text().startswith("# early-exit (arXiv 2404.16710): exit 3\n")

    def test_file_in_a_missing_folder(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("early-exit", "--layers", "8", "--exit", "3", "-o", str(tmp_path / "no" / "p.yaml")) == 1
        assert "its folder does not exist" in capsys.readouterr().err

    def test_list(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run() == 0
        out = capsys.readouterr().out
        assert all(name in out for name in all_methods())

    def test_list_as_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("--json") == 0
        listed = {entry["method"]: entry for entry in json.loads(capsys.readouterr().out)}
        assert list(listed) == list(all_methods())
        assert listed["early-exit"]["needs"] == "--layers"
        assert listed["block-influence"]["needs"] == "--model"

    def test_help_lists_methods(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("--help") == 0
        out = capsys.readouterr().out
        assert all(f"\n  {name} " in out for name in all_methods())

    @pytest.mark.parametrize("name", all_methods())
    def test_help_of_a_method_explains_it(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(name, "--help") == 0
        out = capsys.readouterr().out
        method = all_methods()[name]
        assert method.source in out
        assert all(f"--{field.replace('_', '-')}" in out for field in method.model_fields)
        assert ("--text" in out) == issubclass(method, EvidenceMethod)


class TestErrors:
    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["early-exot", "--layers", "8"], "no method 'early-exot'"),
            (["early-exit", "--exit", "3"], "give either --layers or --model"),
            (
                ["early-exit", "--exit", "3", "--layers", "8", "--model", "x"],
                "give either --layers or --model",
            ),
            (["early-exit", "--layers", "8"], "Missing option '--exit'"),
            (["early-exit", "--layers", "0", "--exit", "3"], "'--layers'"),
            (["early-exit", "--layers", "8", "--exit", "x"], "'x' is not a valid integer"),
            (["early-exit", "--layers", "8", "--exit", "9"], "the model has 8 layers"),
            (["early-exit", "--layers", "8", "--exit", "0"], "parameter 'exit' is 0"),
            (["unified-skipping", "--layers", "8", "--speedup", "1"], "parameter 'speedup' is 1.0"),
            (["unified-skipping", "--layers", "8", "--speedup", "2", "--depth", "4"], "exactly one"),
            (["unified-skipping", "--layers", "8", "--speedup", "2", "--rule", "x"], "'x' is not one of"),
            (["block-influence", "--layers", "8", "--depth", "4"], "give --model instead of --layers"),
            (["block-influence", "--depth", "4"], "give --model"),
        ],
    )
    def test_wrong_usage(self, args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(*args) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.err.startswith("truedepth: error: ")
        assert captured.out == ""


class TestModel:
    def test_layers_from_a_model(self, tiny_folder: Path, plan_json: Any) -> None:
        data = plan_json("early-exit", "--model", str(tiny_folder), "--exit", "3")
        assert data["num_layers"] == 6

    @pytest.mark.parametrize("name", ["block-influence", "angular-distance", "greedy-removal"])
    def test_evidence(self, name: str, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(name, "--model", str(tiny_folder), "--depth", "4", "--json") == 0
        data = json.loads(capsys.readouterr().out)
        assert len(data["layers_used"]) == 4
        assert data["parameters"]["depth"] == 4

    def test_text_of_ones_own(self, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        text = tmp_path / "text.txt"
        text.write_text("".join(f"Line {number} of a story that goes on.\n" for number in range(1000)))
        args = ["block-influence", "--model", str(tiny_folder), "--depth", "4", "--text", str(text), "--json"]
        assert run(*args) == 0
        assert len(json.loads(capsys.readouterr().out)["layers_used"]) == 4

    def test_text_too_short(self, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        text = tmp_path / "text.txt"
        text.write_text("Too short.")
        args = ["block-influence", "--model", str(tiny_folder), "--depth", "4", "--text", str(text)]
        assert run(*args) == 1
        assert "too short" in capsys.readouterr().err


class TestOptionsOfAMethod:
    def parse(self, *args: str) -> dict[str, Any]:
        command = click.Command("everything", params=[*options_of(Everything)])
        return command.make_context("everything", list(args)).params

    def test_types(self) -> None:
        values = self.parse("--count", "3", "--share", "0.25", "--how-wide", "4", "--rule", "two", "--loud")
        assert values == {"count": 3, "share": 0.25, "how_wide": 4, "rule": "two", "loud": True}
        assert Everything(**parameters_of(Everything, values)) == Everything(
            count=3, share=0.25, how_wide=4, rule="two", loud=True
        )

    def test_what_is_not_given_keeps_its_default(self) -> None:
        values = self.parse("--count", "3")
        assert parameters_of(Everything, values) == {"count": 3}

    def test_a_flag_can_be_turned_off(self) -> None:
        assert parameters_of(Everything, self.parse("--count", "3", "--no-loud")) == {
            "count": 3,
            "loud": False,
        }

    def test_help_says_defaults(self) -> None:
        texts = {option.name: option.help for option in options_of(Everything)}
        assert texts["share"] == "which part  [default: 0.5]"
        assert texts["how_wide"] == "if any"
