"""`truedepth export gguf`, called directly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from truedepth.cli.export_gguf import command
from truedepth.errors import OutputError, PlanError, UsageError


def run(*args: str) -> Any:
    return CliRunner().invoke(command, list(args), catch_exceptions=False)


def test_writes_a_file_and_says_what_it_is(tiny_folder: Path, tmp_path: Path) -> None:
    from truedepth.models.gguf.file import read_gguf

    output = tmp_path / "draft.gguf"
    result = run(str(tiny_folder), "--plan", "exit:2", "-o", str(output), "--type", "bf16")
    size = output.stat().st_size / 1e6
    assert result.output == (
        f"Writing tensors ...\n2 blocks of the architecture llama in bf16, {size:,.1f} MB; written to {output}\n"
    )
    assert read_gguf(output).get("block_count") == 2


def test_json(tiny_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "wide.gguf"
    result = run(str(tiny_folder), "--plan", "0 (1|2) 3-5", "-o", str(output), "--json")
    written = json.loads(result.stdout)
    assert written == {
        "path": str(output),
        "architecture": "deci",
        "type": "f16",
        "blocks": 5,
        "context": 512,
        "nbytes": output.stat().st_size,
        "notes": [],
        "plan": written["plan"],
    }
    assert written["plan"]["notation"] == "0 (1|2) 3-5"


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (["--type", "q4_k_m"], UsageError, "llama-quantize"),
        (["--plan", "(0|1) 2-5", "--form", "par"], PlanError, "--form lp"),
        (["--plan", "0-9"], PlanError, "out of range"),
        (["-o", "{model}/out.gguf"], OutputError, "lies in the model itself"),
    ],
)
def test_bad_input(args: list[str], error: type[Exception], message: str, tiny_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    with pytest.raises(error, match=message):
        run(str(tiny_folder), "-o", str(output), *(arg.format(model=tiny_folder) for arg in args))
    assert not list(tmp_path.iterdir())
