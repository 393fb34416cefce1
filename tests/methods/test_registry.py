from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from truedepth.errors import MethodError
from truedepth.methods import all_methods, build_method, get_method
from truedepth.methods.base import EvidenceMethod, LayerMethod

BUILT_IN = [
    "layer-parallel",
    "unified-skipping",
    "early-exit",
    "block-influence",
    "angular-distance",
    "greedy-removal",
    "shapley",
    "shuffle",
    "merge",
    "prune-range",
    "parallel-range",
]


def test_every_published_method_is_there():
    assert list(all_methods())[: len(BUILT_IN)] == BUILT_IN


@pytest.mark.parametrize("name", BUILT_IN)
def test_each_says_what_it_is(name):
    method = get_method(name)
    assert method.name == name
    assert issubclass(method, LayerMethod | EvidenceMethod)
    assert not inspect.isabstract(method)
    assert method.source.startswith("arXiv ")
    assert method.source in (method.__doc__ or "")
    assert "Limits: " in (method.__doc__ or "")
    assert "\n" not in method.summary
    assert all(field.description for field in method.model_fields.values())


def test_an_unknown_name_suggests_and_lists():
    with pytest.raises(MethodError, match=r"no method 'layer-paralel'.*did you mean 'layer-parallel'") as caught:
        get_method("layer-paralel")
    assert all(name in str(caught.value) for name in BUILT_IN)


def test_parameters_are_read_as_a_recipe_or_the_command_line_gives_them():
    method = build_method("layer-parallel", {"end": "28", "delta": "14"})
    assert method == get_method("layer-parallel")(end=28, delta=14)
    assert build_method(method.name, method.model_dump()) == method


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"dleta": 4},
            r"no parameter 'dleta' \(did you mean 'delta'\?\).*are: end, delta, depth, group_size, form",
        ),
        ({"delta": "many"}, "parameter 'delta' is 'many': Input should be a valid integer"),
        ({"delta": 2.5}, "parameter 'delta' is 2.5"),
        ({"delta": -2}, "parameter 'delta' is -2"),
    ],
)
def test_wrong_parameters_are_one_plain_paragraph(parameters, message):
    with pytest.raises(MethodError, match=message) as caught:
        build_method("layer-parallel", parameters)
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_all_wrong_parameters_are_named_at_once():
    with pytest.raises(MethodError) as caught:
        build_method("shuffle", {"start": -1, "stop": 5})
    assert "parameter 'start' is -1" in str(caught.value)
    assert "parameter 'end' is missing" in str(caught.value)
    assert "no parameter 'stop'" in str(caught.value)


def test_making_plans_needs_neither_torch_nor_a_model():
    script = (
        "import sys; from truedepth.methods import all_methods, build_method; all_methods(); "
        "build_method('layer-parallel', {'delta': 4}).plan(8); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
