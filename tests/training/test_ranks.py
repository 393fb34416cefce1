"""Several ranks over gloo: the same training as on one rank that takes all rows of a step.

Sums over rows are made in another order, so figures differ in their last digits: a relative difference of 1e-5 in
losses, and an absolute one of 1e-5 in weights (a hundredth of the learning rate), is allowed after eight steps.
"""

from __future__ import annotations

import os
import random
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from truedepth.training.trainer.figures import FIGURES_FILE, read_figures

SCRIPT = Path(__file__).with_name("train_on_ranks.py")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def recipe(write_lines: Callable[..., Path], tmp_path: Path) -> Path:
    """Six steps of four rows an epoch, so the last two steps are in the second one; held-out rows in odd shares."""
    numbers = random.Random(0)
    lines = [{"prompt": f"{numbers.random()}"[:9], "response": "b" * numbers.randrange(2, 12)} for _ in range(66)]
    source = {"file": str(write_lines(lines)), "format": "prompt-response"}
    config = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    fields: dict[str, Any] = {
        "kind": "plain",
        "model": {"scratch": {"config": config, "vocabulary": 260}, "device": "cpu"},
        "data": {"train": [{**source, "limit": 53}], "held_out": [{**source, "skip": 53}], "length": 40},
        "steps": 8,
        "batch": 4,
        "micro_batch": 1,
        "learning_rate": 1e-3,
        "logging": {"log_every": 2, "evaluate_every": 4, "tensorboard": False},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    return path


@pytest.fixture
def run(recipe: Path, tmp_path: Path) -> Run:
    """`run("name", *options)`: the script's training in the folder `name`, on two ranks."""

    def make(name: str, *options: str) -> subprocess.CompletedProcess[str]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        command = [*launcher, str(SCRIPT), str(recipe), str(tmp_path / name), *options]
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=environment)

    return make


def losses(folder: Path) -> dict[tuple[int, str], float]:
    """Losses by step and name."""
    return {
        (figures.step, name): value
        for figures in read_figures(folder / FIGURES_FILE)
        for name, value in figures.values.items()
        if "loss" in name or name == "grad_norm"
    }


@pytest.mark.slow
def test_two_ranks_are_one_with_the_doubled_batch(
    run: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes its rows in two micro-batches; the training is interrupted in the second epoch and resumed."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(recipe), str(tmp_path / "one")])
    runpy.run_path(str(SCRIPT), run_name="__main__")  # in this process, which has everything imported
    assert "interrupted" in run("two", "--interrupt", "7").stdout
    assert (tmp_path / "two" / "checkpoint-7").is_dir()
    assert sorted(run("two", "--resume").stdout.split()) == ["no", "results", "results"]
    expected = losses(tmp_path / "one")
    assert {step for step, _ in expected} == {0, 2, 4, 6, 8}
    assert losses(tmp_path / "two") == pytest.approx(expected, rel=1e-5)
    weights = load_file(tmp_path / "one" / "model" / "model.safetensors")
    for name, value in load_file(tmp_path / "two" / "model" / "model.safetensors").items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_on_one_rank_ends_all(run: Run, tmp_path: Path) -> None:
    result = run("broken", "--break", "3")
    assert result.returncode != 0
    assert "the loss is nan in step 3, micro-batch 1, made of " in result.stderr
    assert [figures.step for figures in read_figures(tmp_path / "broken" / FIGURES_FILE)] == [0, 2]
