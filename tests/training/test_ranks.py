"""Several ranks over gloo: the same training as on one with the same rows a step.

Sums over rows are made in another order, so figures differ in their last digits: a relative difference of 1e-5 in
losses, and an absolute one of 1e-5 in weights (a hundredth of the learning rate), is allowed after eight steps.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from truedepth.training.figures import FIGURES_FILE, read_figures

SCRIPT = Path(__file__).with_name("train_on_ranks.py")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`run(ranks, "name", rows, *options)`: the script's training in the folder `name`."""

    def make(ranks: int, name: str, rows: int, *options: str) -> subprocess.CompletedProcess[str]:
        launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command = [sys.executable, *launcher, str(SCRIPT), str(tmp_path / name), str(rows), *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

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
def test_two_ranks_are_one_with_the_doubled_batch(run: Run, tmp_path: Path) -> None:
    """Each takes its rows in two micro-batches; the training is interrupted in the second epoch and resumed."""
    assert run(1, "one", 4).returncode == 0
    assert "interrupted" in run(2, "two", 1, "--interrupt", "7").stdout
    assert (tmp_path / "two" / "checkpoint-7").is_dir()
    assert run(2, "two", 1, "--resume").returncode == 0
    expected = losses(tmp_path / "one")
    assert {step for step, _ in expected} == {2, 4, 6, 8}
    assert losses(tmp_path / "two") == pytest.approx(expected, rel=1e-5)
    weights = load_file(tmp_path / "one" / "checkpoint-8" / "model.safetensors")
    for name, value in load_file(tmp_path / "two" / "checkpoint-8" / "model.safetensors").items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_on_one_rank_ends_all(run: Run, tmp_path: Path) -> None:
    result = run(2, "broken", 2, "--break", "3")
    assert result.returncode != 0
    assert "the loss is nan in step 3, micro-batch 1, made of items, line" in result.stderr
    assert [figures.step for figures in read_figures(tmp_path / "broken" / FIGURES_FILE)] == [2]
