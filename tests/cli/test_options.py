"""The options that commands share, and how examples and JSON are printed."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from truedepth.cli import main
from truedepth.cli.options import examples, loading_options, plan_options, print_json
from truedepth.plan.plan_file import load_plan


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


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "gguf", "{model}", "-o", "{file}"],
        ["export", "hf", "{model}", "-o", "{file}"],
        ["plan", "early-exit", "--layers", "8", "--exit", "3", "-o", "{file}"],
        ["measure", "--profile", "-o", "{file}"],
        ["vocabulary", "{model}", "--text", "{file}", "-o", "{folder}"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_what_exists_is_not_overwritten(
    arguments: list[str], tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One rule for every command that writes what the user names; runs in folders have --resume."""
    file = tmp_path / "draft_vocabulary.json"
    file.write_text("mine")
    names = {"model": tiny_folder, "file": file, "folder": tmp_path}
    with pytest.raises(SystemExit, match="1"):
        main([argument.format(**names) for argument in arguments])
    assert f"{file} exists already; choose another name, or replace it with --overwrite" in capsys.readouterr().err
    assert file.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_file_is_replaced_when_asked(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    for depth, options in (("3", []), ("5", ["--overwrite"])):
        with pytest.raises(SystemExit, match="0"):
            main(["plan", "early-exit", "--layers", "8", "--exit", depth, "-o", str(file), *options])
        assert load_plan(file).effective_depth == int(depth)


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
