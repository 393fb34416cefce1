"""Two processes over gloo, started as a user starts them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from truedepth import DepthPlan, apply, load, restore
from truedepth.cli.generate import command as generate

SCRIPT = Path(__file__).with_name("on_ranks.py")
PLAN = "0 (1|2) 3 (4|5)"

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`run("-m", "truedepth", ...)`: under torchrun, on two ranks."""

    def start(*arguments: str) -> subprocess.CompletedProcess[str]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "RESULTS": str(tmp_path / "results")}
        return subprocess.run(
            [*launcher, *arguments], capture_output=True, text=True, timeout=200, check=False, env=environment
        )

    return start


def ours(result: subprocess.CompletedProcess[str]) -> list[str]:
    """What truedepth itself said on stderr."""
    return [line for line in result.stderr.splitlines() if line.startswith("truedepth:")]


@pytest.mark.slow
def test_logits_of_a_checkpoint(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    """Each plan's, all loaded at once and sharing what they can; of a head of its own, although the flag says tied."""
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    result = run(str(SCRIPT), str(folder), "logits")
    assert result.returncode == 0, result.stderr
    records = [json.loads((tmp_path / f"results.{rank}.json").read_text()) for rank in range(2)]
    model, ids = load(str(folder), device="cpu").model, torch.arange(3, 23).view(2, 10)
    plans: dict[str, tuple[str, Any]] = {
        "full": ("0-5", "lp"),
        "lp": (PLAN, "lp"),
        "par": ("(0|1) 2 (4|5)", "par"),
        "merged": ("0 (1+2) (3|4)", "lp"),
    }
    for name, (text, form) in plans.items():
        plan = DepthPlan.parse(text, 6, form)
        with torch.no_grad():
            expected = apply(model, plan)(ids).logits.flatten()
        restore(model)
        for record in records:
            values, all_reduces = record["found"][name]
            torch.testing.assert_close(torch.tensor(values), expected, rtol=1e-5, atol=1e-5)
            assert all_reduces == plan.all_reduces
    assert [record["shared"] for record in records] == [True, True]
    assert [record["chosen"] for record in records] == [17, 17]


@pytest.mark.slow
def test_generate_prints_once_what_one_process_prints(run: Run, tiny_folder: Path) -> None:
    arguments = [str(tiny_folder), "--plan", PLAN, "--prompt", "hello", "--max-new-tokens", "12", "--json"]
    result = run("-m", "truedepth", "generate", *arguments)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)  # a second rank's output would be no JSON behind it
    expected = json.loads(CliRunner().invoke(generate, arguments).stdout)
    assert found["token_ids"] == expected["token_ids"]
    passes = len(found["token_ids"])  # one reads the prompt and gives the first token
    counted = {"count": 2, "backend": "gloo", "all_reduces": 8 * passes, "all_gathers": passes, "broadcasts": 0}
    assert found["ranks"] == counted
    assert "ranks" not in expected


@pytest.mark.slow
def test_measure_with_quality(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog; " * 2000)
    sizes = ["--prompt-tokens", "4", "--new-tokens", "2", "--repeats", "3", "--text", str(text), "--json"]
    result = run("-m", "truedepth", "measure", str(tiny_folder), "--plan", PLAN, "--form", "par", *sizes)
    assert result.returncode == 0, result.stderr
    plans = json.loads(result.stdout)["plans"]
    for name, expected in {"unmodified": 12, "plan": 6}.items():
        assert plans[name]["token"]["all_reduces"] == plans[name]["prompt"]["all_reduces"] == expected
        assert plans[name]["plan"]["all_reduces"] == expected
    assert plans["unmodified"]["quality"]["kl"] == 0
    assert plans["plan"]["quality"]["kl"] > 0


@pytest.mark.slow
def test_one_message_where_all_ranks_refuse(run: Run, tiny_folder: Path) -> None:
    result = run("-m", "truedepth", "measure", str(tiny_folder), "--plan", "0 (1|2|3) 4 5", "--form", "par")
    assert result.returncode != 0
    (said,) = ours(result)
    assert "the group '(1|2|3)' runs 3 whole layers side by side" in said
    assert not result.stdout


@pytest.mark.slow
def test_a_rank_that_fails_ends_all_and_says_why(run: Run, tiny_folder: Path) -> None:
    result = run(str(SCRIPT), str(tiny_folder), "broken")
    assert result.returncode != 0
    (said,) = ours(result)
    assert "out of memory (this rank has no more)" in said


@pytest.mark.slow
def test_ctrl_c_ends_all_with_one_word(run: Run, tiny_folder: Path) -> None:
    result = run(str(SCRIPT), str(tiny_folder), "interrupted")
    assert result.returncode != 0
    assert ours(result) == ["truedepth: interrupted"]


def test_what_does_not_work_on_ranks_is_refused(
    monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, tmp_path: Path
) -> None:
    """A single rank whose environment says two, and asks for nothing that needs the other."""
    from truedepth.parallel import launch

    monkeypatch.setattr(launch, "_run", None)
    monkeypatch.setattr("truedepth.cli.ranks.started_ranks", lambda: 2)
    environment = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for arguments in (["--draft", "exit:2"], ["--draft-vocabulary", str(tmp_path)], ["--draft-length", "3"]):
        result = CliRunner().invoke(generate, [str(tiny_folder), "--prompt", "hello", "--device", "cpu", *arguments])
        assert f"{arguments[0]} does not work on several ranks" in str(result.exception)
    result = CliRunner().invoke(generate, [str(tiny_folder), "--device", "cpu"], input="hello")
    assert "several ranks cannot read one standard input" in str(result.exception)
