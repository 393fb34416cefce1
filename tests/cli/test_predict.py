"""`truedepth predict` on folders that hold a configuration and no weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from truedepth.cli.predict import command
from truedepth.errors import ModelLoadError, PlanError, UnsupportedModelError, UsageError


@pytest.fixture
def predict(tiny_folder: Path, tmp_path: Path) -> Callable[..., Result]:
    """Run the command on a folder with the configuration of the tiny model alone."""
    folder = tmp_path / "shapes"
    folder.mkdir()
    shutil.copy(tiny_folder / "config.json", folder)

    def run(*options: str, model: str | None = None) -> Result:
        return CliRunner().invoke(command, [model or str(folder), *options], env={"COLUMNS": "120"})

    return run


def test_table(predict: Callable[..., Result]) -> None:
    result = predict("--plan", "0 (1|2) (3|4) 5", "--hardware", "h100-x2")
    assert result.exit_code == 0, result.output
    rows = ["stages", "tokens/s", "speedup", "time", "reading", "computing", "launches", "all-reduces"]
    assert all(row in result.stdout for row in rows)
    printed = " ".join(result.stdout.split())
    assert "a decode step on 2 x NVIDIA H100" in printed
    assert "the prompt on 2 x NVIDIA H100" in printed
    assert "Predicted, not measured" in printed


def test_json(predict: Callable[..., Result]) -> None:
    sizes = ["--batch", "4", "--context", "100", "--prompt-tokens", "50", "--devices", "4"]
    result = predict("--plan", "0 (1|2) (3|4) 5", "--form", "par", "--hardware", "a100-nvlink:eager", *sizes, "--json")
    data = json.loads(result.stdout)
    assert (data["batch"], data["context"], data["prompt_tokens"]) == (4, 100, 50)
    assert (data["hardware"]["devices"], data["hardware"]["stack"]) == (4, "eager")
    plan = data["plans"]["plan"]
    assert plan["plan"]["notation"] == "0 (1|2) (3|4) 5"
    assert plan["decode"]["all_reduces"] == 2 * 2 + 2 * 1 + 1
    parts = plan["decode"]["parts"]
    assert sum(parts.values()) == pytest.approx(plan["decode"]["seconds"]["value"])
    assert plan["decode"]["speedup"]["low"] < plan["decode"]["speedup"]["value"] < plan["decode"]["speedup"]["high"]


def test_without_a_plan_the_model_alone(predict: Callable[..., Result]) -> None:
    assert list(json.loads(predict("--hardware", "h100", "--json").stdout)["plans"]) == ["unmodified"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--hardware", "abacus"], UsageError, "no hardware profile 'abacus'"),
        (["--hardware", "h100:magic"], UsageError, "no stack 'magic'"),
        (["--hardware", "h100", "--plan", "0-7"], PlanError, "out of range"),
    ],
)
def test_wrong_options(predict: Callable[..., Result], options: list[str], error: type, message: str) -> None:
    result = predict(*options)
    assert isinstance(result.exception, error)
    assert message in str(result.exception)


@pytest.mark.parametrize(
    "wrong", [[], ["--hardware", "h100", "--batch", "0"], ["--hardware", "h100", "--devices", "0"]]
)
def test_wrong_numbers(predict: Callable[..., Result], wrong: list[str]) -> None:
    assert predict(*wrong).exit_code == 2


def test_wrong_models(predict: Callable[..., Result], tmp_path: Path) -> None:
    other = tmp_path / "gpt2"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "gpt2"}')
    weights = tmp_path / "model.safetensors"
    weights.touch()
    for model, error in ((other, UnsupportedModelError), (weights, ModelLoadError), (tmp_path, ModelLoadError)):
        assert isinstance(predict("--hardware", "h100", model=str(model)).exception, error)
    assert isinstance(predict("--hardware", "h100", model=" ").exception, UsageError)
