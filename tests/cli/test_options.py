"""The options that commands share, and how examples and JSON are printed."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from truedepth.cli.options import examples, loading_options, plan_options, print_json


def test_shared_options_become_keyword_arguments() -> None:
    got = {}

    @click.command()
    @plan_options
    @loading_options
    def command(**values: object) -> None:
        got.update(values)

    CliRunner().invoke(command, ["--plan", "0-3", "--form", "par", "--device", "cpu"], catch_exceptions=False)
    assert got == {
        "plan": "0-3",
        "form": "par",
        "prefill": None,
        "dtype": "auto",
        "device": "cpu",
        "trust_remote_code": False,
    }


def test_examples_are_not_rewrapped() -> None:
    line = "truedepth optimize smollm2-135m --speedup 1.25 --output a-folder-with-a-rather-long-name --resume"
    command = click.Command("x", epilog=examples("short", line))
    out = CliRunner().invoke(command, ["--help"]).output
    assert f"  Examples:\n    short\n    {line}\n" in out


def test_json_keeps_order_and_letters(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"b": "é", "a": Path("x/y")})
    out = capsys.readouterr().out
    assert json.loads(out) == {"b": "é", "a": "x/y"}
    assert out.index('"b": "é"') < out.index('"a"')
