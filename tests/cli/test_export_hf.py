"""`truedepth export hf` end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from truedepth.cli import main


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main([*args])
    return int(stop.value.code or 0)


def test_writes_and_says_so(tiny_folder: Path, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "wide"
    assert run("export", "hf", str(tiny_folder), "--plan", "0 (1|2) 5", "-o", str(output)) == 0
    printed = capsys.readouterr().out
    assert "3 layers of TruedepthLlamaForCausalLM" in printed
    assert "largest difference of two logits" in printed
    assert run("generate", str(output), "--prompt", "tides", "--max-new-tokens", "3") == 0


def test_json(tiny_folder: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = ["export", "hf", str(tiny_folder), "--plan", "exit:2", "-o", str(tmp_path / "draft"), "--json"]
    assert run(*arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["architecture"] == "LlamaForCausalLM"
    assert report["stages"] == 2
    assert report["check"] is None
    assert report["plan"]["notation"] == "0 1"


def test_form_par_offers_lp_which_works(tiny_folder: Path, tmp_path: Path, capsys: Any) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("plan: 0 (1|2) 5\nlayers: 6\nform: par\n")
    arguments = ["export", "hf", str(tiny_folder), "--plan", str(plan), "-o", str(tmp_path / "wide")]
    assert run(*arguments) == 2
    assert "--form lp" in capsys.readouterr().err
    assert run(*arguments, "--form", "lp") == 0


def test_group_lists_the_formats(capsys: Any) -> None:
    assert run("export", "--help") == 0
    printed = capsys.readouterr().out
    assert "hf" in printed
    assert "gguf" in printed
    assert run("export", "onnx") == 2
