"""Every command and every snippet of the documentation does what it says, on a tiny model in the place of a real one.

A block that is not run says why in a comment before it: `<!-- not run: needs vLLM -->`. Its truedepth commands are
still read by the command line.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

from truedepth.cli import cli, main

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "packages").glob("*/README.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
]
IN_TESTS_OF_THEIR_OWN = {"rewiring.md", "reference-decoder.md"}
"""Pages whose snippets other tests run: tests/models/test_rewire_docs.py and tests/test_reference_decoder.py."""

BLOCK = re.compile(r"(?:^<!-- not run: (?P<why>.+?) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
OTHERS = {
    "vllm": "needs vLLM",
    "llama-server": "needs llama.cpp's programs",
    "llama-quantize": "needs llama.cpp's programs",
    "torchrun": "needs several ranks",
    "accelerate": "needs several ranks",
    ".venv/bin/pytest": "the tests themselves",
    "make": "a target, which must be there",
    "pip": "an installation, whose folders and extras must be there",
    "python": "a script, which must be there",
}
"""What is not truedepth's, and why it is not run."""

LONG = {"train": "takes hours"}
"""Commands that are only read; their recipes are checked in tests/cli/test_train.py."""

SMALLER = {
    "generate": {"--max-new-tokens": "4"},
    "measure": {"--prompt-tokens": "4", "--new-tokens": "3", "--repeats": "3"},
}
"""Options that a command gets unless it has them: less work than by default."""

NAMES = ("smollm2-135m", "meta-llama/Llama-2-7b-hf")
"""Models in whose place the tiny one stands, but where the head that comes with the real one is asked for."""


class Block(NamedTuple):
    """A block of code on a page."""

    kind: str
    text: str
    why: str | None


def blocks(page: Path) -> list[Block]:
    return [Block(m["kind"], m["text"], m["why"]) for m in BLOCK.finditer(page.read_text(encoding="utf-8"))]


def lines(block: Block) -> Iterator[list[str]]:
    """The words of each command line of a block, without comments."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def of_truedepth(words: list[str]) -> list[str] | None:
    """The arguments of `truedepth`, whatever starts it; None where nothing does."""
    if words[0] == "truedepth":
        return words[1:]
    return words[words.index("truedepth") + 1 :] if "-m" in words and "truedepth" in words else None


def read_by_the_command_line(arguments: list[str]) -> None:
    """Parse a command line whole, as it would be run.

    Raises:
        click.UsageError: it would be refused.
    """
    command: click.Command = cli
    context = cli.make_context("truedepth", list(arguments))
    while isinstance(command, click.Group):
        name, inner, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert inner is not None
        command, context = inner, inner.make_context(name, rest, parent=context)


def shown_in_help() -> Iterator[list[str]]:
    """The examples that the help texts end with."""

    def epilogs(command: click.Command, context: click.Context) -> Iterator[str]:
        yield command.epilog or ""
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                assert inner is not None
                yield from epilogs(inner, click.Context(inner, parent=context, info_name=name))

    for epilog in epilogs(cli, click.Context(cli, info_name="truedepth")):
        for line in epilog.splitlines():
            if "truedepth" in line:
                words = shlex.split(line, comments=True)
                yield words[words.index("|") + 1 :] if "|" in words else words


def commands() -> list[list[str]]:
    shown = [words for page in PAGES for block in blocks(page) if block.kind == "sh" for words in lines(block)]
    return list({shlex.join(words): words for words in (*shown, *shown_in_help())}.values())


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_are_accepted(words: list[str]) -> None:
    """Every option and argument as it is written; what is not truedepth's is known and there."""
    arguments = of_truedepth(words)
    if arguments is not None:
        if arguments[:2] == ["plan", "reverse"]:
            pytest.skip("a method of the example package, which tests/methods/test_third_party.py installs")
        with contextlib.suppress(click.exceptions.Exit):  # of --help
            read_by_the_command_line(arguments)
    if words[0] == "truedepth":
        return
    assert words[0] in OTHERS
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text("utf-8"), re.M)
    if words[0] == "python":
        assert (ROOT / words[1]).is_file()
    if words[0] == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
        for word in words[2:]:
            if word.startswith("."):
                folder, _, extra = word.rstrip("]").partition("[")
                assert (ROOT / folder).is_dir() and (not extra or extra in project["optional-dependencies"])
            assert not word.startswith("truedepth")  # it is on no index


RECIPE = """
kind: layerskip
model: {name: ./checkpoint}
data: {train: [{file: chat.txt}], held_out: [{file: chat.txt, limit: 4}], length: 64}
steps: 2
batch: 2
micro_batch: 2
learning_rate: 1e-3
precision: float32
layerskip: {p_max: 0.1, e_scale: 0.2, curriculum: rotational, every: 8, watch: [6]}
"""


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Callable[..., Any],
    tiny_folder: Path,
    made_up_hardware: Path,
) -> Path:
    """A folder with everything that pages take for granted: models, texts, a plan, a head, a vocabulary, runs."""
    import torch

    from truedepth import DepthPlan, load
    from truedepth.engine import DraftVocabulary, EagleHead
    from truedepth.plan.plan_file import save_plan

    folder = tmp_path_factory.mktemp("world")
    model = tiny_model("llama", num_hidden_layers=30, vocab_size=259, head_dim=16, max_position_embeddings=2048)
    model.save_pretrained(folder / "checkpoint")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tiny_folder / name, folder / "checkpoint" / name)
    for name in ("trained", "my-model", "layerskip-checkpoint", "folder-with-config", "MODEL"):
        shutil.copytree(folder / "checkpoint", folder / name)
    (folder / "question.txt").write_text("Why is the sky blue?", encoding="utf-8")
    (folder / "chat.txt").write_text((ROOT / "docs" / "methods.md").read_text("utf-8") * 3, encoding="utf-8")
    save_plan(DepthPlan.parse("0-19 (20|21) (22|23) 24-29", 30), folder / "plan.yaml")
    loaded = load(str(folder / "checkpoint"))
    EagleHead.fresh(loaded.model, (10, 20)).save(folder / "run" / "head")
    DraftVocabulary(torch.arange(200)).save(folder / "vocabulary", loaded.model, loaded.tokenizer)
    hardware = ["--hardware", str(made_up_hardware)]  # a busy machine may be too uneven to plan for
    run_command(["optimize", "./checkpoint", "--speedup", "1.25", *hardware, "-o", "found"], folder)
    shutil.copytree(folder / "found", folder / "run", dirs_exist_ok=True)
    # As `optimize --lossless` leaves it where a draft pays, which on this model none does.
    shutil.copytree(folder / "vocabulary", folder / "draft")
    shutil.copyfile(folder / "plan.yaml", folder / "draft" / "plan.yaml")
    shutil.copytree(folder / "run" / "head", folder / "head-run" / "head")
    shutil.copytree(folder / "checkpoint", folder / "run" / "model")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    return folder


def run_command(arguments: list[str], folder: Path, attempts: int = 1) -> None:
    """Run truedepth in a folder.

    Raises:
        pytest.fail.Exception: it ends with another exit code than 0 at each attempt.
    """
    before = Path.cwd()
    os.chdir(folder)
    try:
        for _ in range(attempts):
            with pytest.raises(SystemExit) as ended:
                main(arguments)
            if ended.value.code == 0:
                return
    finally:
        os.chdir(before)
    pytest.fail(f"exit code {ended.value.code}: truedepth {shlex.join(arguments)}")


def tiny(text: str) -> str:
    """A command or a snippet with the tiny model in the place of a real one."""
    if ("default" in text and "--draft default" in text) or 'draft="default"' in text:
        return text
    for name in NAMES:
        text = text.replace(name, "./checkpoint")
    return text.replace("--size 8192", "--size 100")  # it has 259 tokens


def run_block(block: Block, names: dict[str, Any], folder: Path) -> None:
    if block.kind == "python":
        exec(compile(tiny(block.text), "a page", "exec"), names)
        return
    for words in lines(block):
        if words[0] != "truedepth" or words[1] in LONG or words[1:3] == ["plan", "reverse"]:
            continue
        arguments = shlex.split(tiny(shlex.join(words[1:])))
        if "-o" in arguments and (written := folder / arguments[arguments.index("-o") + 1]).exists():
            if words[1] == "optimize":
                continue  # it is in the folder that all pages start with
            shutil.rmtree(written) if written.is_dir() else written.unlink()
        if "--profile" not in arguments:
            for option, value in SMALLER.get(words[1], {}).items():
                arguments += [] if option in arguments else [option, value]
        # A profile of a busy machine may be refused.
        run_command(arguments, folder, attempts=4 if "--profile" in arguments else 1)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.filterwarnings("ignore")
def test_pages_run(page: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block of a page, one after the other, in one folder and with one set of names."""
    folder = tmp_path / "here"
    shutil.copytree(world, folder)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "a page"}
    for block in blocks(page):
        runs = block.kind == "sh" or (block.kind == "python" and page.name not in IN_TESTS_OF_THEIR_OWN)
        if runs and block.why is None:
            run_block(block, names, folder)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """To files that are there, and to headings of them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text("utf-8"), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{page.name}: {target}"
