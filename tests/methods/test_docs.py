"""What `docs/methods.md` says of the methods is true."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from truedepth.methods import all_methods, build_method
from truedepth.methods.base import LayerMethod

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "examples" / "truedepth-reverse-method"

# Not those of packages that happen to be installed.
METHODS = {name: method for name, method in all_methods().items() if method.__module__.startswith("truedepth.")}
COMMANDS = re.findall(r"^truedepth plan (.+)$", DOCS, re.MULTILINE)
SHOWN = re.findall(r"^truedepth plan (.+)\n```\n\nPlan: `(.+)`$", DOCS, re.MULTILINE)


def section_of(name: str) -> str:
    match = re.search(rf"^##+ {name}$(.*?)(?=^##|\Z)", DOCS, re.MULTILINE | re.DOTALL)
    return match[1] if match else ""


def parse(command: str) -> tuple[str, dict[str, str]]:
    """`name --group-size 2 ...` as the method's name and its parameters; the model is left out."""
    name, *words = shlex.split(command)
    flags = (word.removeprefix("--").replace("-", "_") for word in words[::2])
    parameters = dict(zip(flags, words[1::2], strict=True))
    parameters.pop("model", None)
    return name, parameters


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_section_with_its_parameters_its_source_and_a_command(name):
    method = METHODS[name]
    section = section_of(name)
    for parameter in method.model_fields:
        assert f"`--{parameter.replace('_', '-')}`" in section
    assert "Limits: " in section
    assert f"truedepth plan {name} " in section
    assert f"| [`{name}`](#{name}) |" in DOCS
    assert method.source in DOCS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_parameters_that_fit(command):
    name, parameters = parse(command)
    if name == "reverse":
        return  # The example package, which has a test of its own.
    layers = parameters.pop("layers", None)
    assert isinstance(build_method(name, parameters), LayerMethod) == (layers is not None)


@pytest.mark.parametrize(("command", "notation"), SHOWN)
def test_every_plan_shown_is_the_plan_made(command, notation):
    name, parameters = parse(command)
    layers = int(parameters.pop("layers"))
    method = build_method(name, parameters)
    assert isinstance(method, LayerMethod)
    assert method.plan(layers).notation == notation


def test_the_plans_shown_are_found():
    assert {parse(command)[0] for command, _ in SHOWN} == {
        name for name, method in METHODS.items() if issubclass(method, LayerMethod)
    }


def test_the_example_is_shown_as_it_is():
    module = (EXAMPLE / "src" / "truedepth_reverse_method" / "__init__.py").read_text(encoding="utf-8")
    assert f"```python\n{module}```" in DOCS
