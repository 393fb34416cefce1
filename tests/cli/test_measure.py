"""`truedepth measure` on a tiny model that was saved to a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from truedepth.cli.measure import command
from truedepth.errors import PlanError, UnsupportedModelError
from truedepth.measuring import bandwidth

FEW = ["--prompt-tokens", "3", "--new-tokens", "2", "--repeats", "3"]


@pytest.fixture
def measure(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command on the tiny model, with a short bandwidth probe."""
    monkeypatch.setattr(bandwidth, "_CPU_BYTES", 4096)
    monkeypatch.setattr(bandwidth, "_SECONDS", 0.0)

    def run(*options: str) -> Result:
        arguments = [str(tiny_folder), *FEW, *options]
        return CliRunner().invoke(command, arguments, env={"COLUMNS": "100"})

    return run


def test_quality_is_judged_on_a_text(measure: Callable[..., Result], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a b c d e f g h " * 1000, encoding="utf-8")
    result = measure("--plan", "0 1 (2|3) 5", "--text", str(text), "--json")
    plans = json.loads(result.stdout)["plans"]
    assert plans["unmodified"]["quality"]["kl"] == 0
    assert plans["plan"]["quality"]["kl"] > 0
    assert plans["plan"]["quality"]["perplexity"] != plans["unmodified"]["quality"]["perplexity"]
    table = measure("--plan", "0 1 (2|3) 5", "--text", str(text)).stdout
    assert "perplexity" in table
    assert "same most likely token" in table


def test_table(measure: Callable[..., Result]) -> None:
    result = measure("--plan", "0 1 (2|3) 5")
    assert result.exit_code == 0, result.output
    rows = ["decode, tokens/s", "speed ratio", "prefill, tokens/s", "first token, ms", "read for a token"]
    assert all(row in result.stdout for row in [*rows, "of the memory limit", "unmodified", "plan"])
    assert "1.00 (1.00 to 1.00)" in result.stdout
    assert "stage (2|3)" not in result.stdout


def test_json(measure: Callable[..., Result], tiny_folder: Path) -> None:
    result = measure("--plan", "0 1 (2|3) 5", "--form", "par", "--json")
    data = json.loads(result.stdout)
    assert data["model"] == str(tiny_folder)
    assert (data["prompt_tokens"], data["new_tokens"], data["batch"], data["repeats"]) == (3, 2, 1, 3)
    assert list(data["plans"]) == ["unmodified", "plan"]
    plan = data["plans"]["plan"]
    assert (plan["plan"]["notation"], plan["plan"]["form"]) == ("0 1 (2|3) 5", "par")
    assert plan["bytes_per_token"] < data["plans"]["unmodified"]["bytes_per_token"]
    rate, limit = plan["decode_tokens_per_second"]["median"], data["machine"]["bandwidth_bytes_per_second"]
    assert plan["bandwidth_share"] == pytest.approx(plan["bytes_per_token"] * rate / limit)
    assert set(plan["ratio"]) == {"median", "low", "high"}
    assert "step" not in plan


def test_stages(measure: Callable[..., Result]) -> None:
    result = measure("--plan", "0 1 (2|3) 5", "--stages")
    assert "A decode step: unmodified" in result.stdout
    assert "stage (2|3)" in result.stdout
    assert "LM head" in result.stdout
    data = json.loads(measure("--plan", "0 1 (2|3) 5", "--stages", "--json").stdout)
    assert data["plans"]["plan"]["step"]["notation"] == ["0", "1", "(2|3)", "5"]
    assert len(data["plans"]["unmodified"]["step"]["stages"]) == 6


def test_without_a_plan_the_model_alone_is_measured(measure: Callable[..., Result]) -> None:
    assert list(json.loads(measure("--json").stdout)["plans"]) == ["unmodified"]


@pytest.mark.parametrize("wrong", [["--repeats", "2"], ["--batch", "0"], ["--new-tokens", "-1"]])
def test_wrong_numbers_are_refused_before_loading(measure: Callable[..., Result], wrong: list[str]) -> None:
    result = measure(*wrong)
    assert result.exit_code == 2
    assert wrong[0] in result.stderr


def test_a_plan_for_another_depth(measure: Callable[..., Result]) -> None:
    result = measure("--plan", "0-7")
    assert isinstance(result.exception, PlanError)


def test_an_unsupported_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    result = CliRunner().invoke(command, [str(tmp_path)])
    assert isinstance(result.exception, UnsupportedModelError)


def test_help_has_examples() -> None:
    result = CliRunner().invoke(command, ["--help"])
    assert "truedepth measure smollm2-135m --plan run" in result.stdout
