"""Measuring a profile: that it can be used and read back, over one rank and over two. No test looks at real rates."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from truedepth.cli.measure import command
from truedepth.errors import TruedepthError, UsageError
from truedepth.hardware import rates
from truedepth.hardware.profile import load_hardware
from truedepth.measuring import bandwidth
from truedepth.measuring.speed import Comparison, TimedRun

CPU = torch.device("cpu")

# A step takes 1 s and 0.5 s for each of twelve layers.
STEPS = Comparison({"full": (TimedRun(1.0, (7.0,)),) * 4, "half": (TimedRun(1.0, (4.0,)),) * 4}, 8, 1, 1)

# Runs the command with buffers that are small enough for a test, and steps of which noise cannot make a refusal;
# torchrun starts a script, not a function.
SMALL = """
from truedepth.cli import main
from truedepth.hardware import rates
from truedepth.measuring import bandwidth
from truedepth.measuring.speed import Comparison, TimedRun
bandwidth._CPU_BYTES, rates._CPU_WIDTH, rates._SECONDS, rates._PROMPT_ROWS = 2**14, 32, 0.0, (4, 8, 16)
steps = Comparison({"full": (TimedRun(1.0, (7.0,)),) * 4, "half": (TimedRun(1.0, (4.0,)),) * 4}, 8, 1, 1)
rates.compare = lambda *_, **__: steps
main()
"""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "_CPU_BYTES", 2**14)
    monkeypatch.setattr(rates, "_CPU_WIDTH", 32)
    monkeypatch.setattr(rates, "_SECONDS", 0.0)
    monkeypatch.setattr(rates, "compare", lambda *_, **__: STEPS)


@pytest.mark.usefixtures("small")
def test_a_profile_of_one_device(tmp_path: Path) -> None:
    file = tmp_path / "here.yaml"
    result = CliRunner().invoke(command, ["--profile", "-o", str(file)])
    assert result.exit_code == 0, result.output
    found = load_hardware(str(file))
    assert (found.devices, found.stack, found.profile.bytes_per_value) == (1, "eager", 4)
    assert found.machine.kernels_per_layer > 10
    assert found.machine.kernel_launch_seconds > 0
    with pytest.raises(UsageError, match="need the field 'link'"):
        load_hardware(str(file), devices=2)


@pytest.mark.slow
def test_a_profile_of_two_ranks(tmp_path: Path) -> None:
    script, file = tmp_path / "small.py", tmp_path / "two.yaml"
    script.write_text(SMALL)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [str(script), "measure", "--profile", "-o", str(file)]
    done = subprocess.run([*torchrun, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote") == 1  # by the first rank alone
    found = load_hardware(str(file))
    assert found.devices == 2
    assert found.machine.all_reduce_seconds > 0
    assert found.profile.link is not None and found.profile.link.bytes_per_second.value > 0


def test_launch_costs_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "compare", lambda *_, **__: STEPS)
    found = rates.launch_costs(CPU, torch.float32)
    assert (found.layer_seconds.value, found.outside_seconds.value) == (0.5, 1.0)
    assert found.layer_operations > 10
    assert found.outside_operations > 3


def test_noise_is_no_launch_time(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {"full": (TimedRun(1.0, (4.0,)),) * 4, "half": (TimedRun(1.0, (4.0,)),) * 4}
    monkeypatch.setattr(rates, "compare", lambda *_, **__: Comparison(runs, 8, 1, 1))
    with pytest.raises(TruedepthError, match="drowns in noise"):
        rates.launch_costs(CPU, torch.float32)


def test_no_memory_for_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "ones", full)
    with pytest.raises(TruedepthError, match="256 MiB of free memory"):
        rates.reading_rate(CPU, torch.float32)


@pytest.mark.parametrize("wrong", [["--profile", "smollm2-135m"], ["--profile", "--plan", "0-3"], [], ["m", "-o", "x"]])
def test_a_profile_has_no_model(wrong: list[str]) -> None:
    assert isinstance(CliRunner().invoke(command, wrong).exception, UsageError)
