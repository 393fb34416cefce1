"""How many threads commands compute with, and how PyTorch's wait."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from truedepth.cli import main

SETTLED = """
import os, sys
if sys.argv[1] == "one":
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
from truedepth.cli.threads import settle_threads
settle_threads(None, None, int(sys.argv[2]) or None)
import torch
print(torch.get_num_threads(), os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY"))
"""
"""With the processors that the process may use ("one" or "all") and the threads that are asked for (0: none)."""


def settled(processors: str, asked: int, **environment: str) -> list[str]:
    command = [sys.executable, "-c", SETTLED, processors, str(asked)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    run = subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True, check=True)
    return run.stdout.split()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_as_many_as_the_process_may_use() -> None:
    assert settled("one", 0) == ["1", "1000", "None"]


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two processors")
def test_as_many_as_asked() -> None:
    assert settled("one", 2, OMP_NUM_THREADS="1") == ["2", "1000", "None"]


def test_the_environment_stands() -> None:
    assert settled("all", 0, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="ACTIVE") == ["1", "None", "ACTIVE"]
    assert settled("all", 1, GOMP_SPINCOUNT="5") == ["1", "5", "None"]


@pytest.mark.usefixtures("threads_afterwards")
def test_a_command_computes_with_them(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(2)
    sizes = ("--prompt-tokens", "4", "--new-tokens", "3", "--repeats", "3")
    with pytest.raises(SystemExit) as ended:
        main(["measure", str(tiny_folder), *sizes, "--threads", "1", "--json"])
    machine: Any = json.loads(capsys.readouterr().out)["machine"]
    assert (ended.value.code, machine["threads"]) == (0, 1)
    assert 0 <= machine["others"] <= 1


@pytest.mark.parametrize(("asked", "said"), [("0", "x>=1"), ("100000", "this machine has")])
def test_what_is_refused(asked: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["generate", "smollm2-135m", "--prompt", "Hi", "--threads", asked])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
