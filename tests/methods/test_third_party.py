"""Methods of other packages: the example in `examples/`, and packages that get it wrong."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from truedepth.errors import MethodError
from truedepth.methods.registry import ENTRY_POINT_GROUP, all_methods, build_method, get_method

EXAMPLE = Path(__file__).parents[2] / "examples" / "truedepth-reverse-method"

MODULE = """
from truedepth.methods.base import LayerMethod
from truedepth.plan import DepthPlan

class Whole(LayerMethod):
    name = "whole"
    summary = "everything"
    source = "none"

    def plan(self, num_layers):
        return DepthPlan.full(num_layers)

class NotAMethod:
    pass
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """`install(package, {name: value})`: a package with entry points, as pip leaves it, and its module."""
    monkeypatch.syspath_prepend(tmp_path)

    def add(package: str, points: dict[str, str], module: str = MODULE) -> None:
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"[{ENTRY_POINT_GROUP}]", *(f"{name} = {value}" for name, value in points.items())]
        (info / "entry_points.txt").write_text("\n".join(lines))
        (tmp_path / f"{package}.py").write_text(module)
        monkeypatch.delitem(sys.modules, package, raising=False)

    return add


def test_the_example_package_adds_its_method(install, monkeypatch):
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    install("example_of_the_docs", project["entry-points"][ENTRY_POINT_GROUP])
    monkeypatch.syspath_prepend(EXAMPLE / "src")
    assert build_method("reverse", {"start": 2, "end": 5}).plan(7).notation == "0 1 4 3 2 5 6"
    assert all_methods()["reverse"] is get_method("reverse")
    assert get_method("early-exit").name == "early-exit"
    with pytest.raises(MethodError, match="choose 0 <= start < end <= 7"):
        build_method("reverse", {"start": 5, "end": 9}).plan(7)


def test_a_third_party_method_is_suggested(install):
    install("vendor_a", {"whole": "vendor_a:Whole"})
    with pytest.raises(MethodError, match="did you mean 'whole'"):
        get_method("whoel")


def test_a_name_that_is_taken_says_who_has_it(install):
    install("vendor_b", {"merge": "vendor_b:Whole"})
    with pytest.raises(MethodError, match=r"called 'merge'.*truedepth\.methods\.merge.*vendor_b 1\.0 \(vendor_b:Whole"):
        get_method("merge")


def test_two_packages_with_one_name_are_both_named(install):
    install("vendor_c", {"whole": "vendor_c:Whole"})
    install("vendor_d", {"whole": "vendor_d:Whole"})
    with pytest.raises(MethodError, match="called 'whole'") as caught:
        all_methods()
    assert "vendor_c 1.0" in str(caught.value)
    assert "vendor_d 1.0" in str(caught.value)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (
            {"thing": "vendor_e:NotAMethod"},
            "'thing' of package vendor_e.*is not a method; it must name a class",
        ),
        ({"thing": "vendor_e:MODULE"}, "'thing' of package vendor_e.*is not a method"),
        ({"thing": "vendor_e:Whole"}, "'thing' of package vendor_e.*whose name is 'whole'"),
    ],
)
def test_an_entry_point_that_is_no_method(install, points, message):
    install("vendor_e", points, MODULE + "MODULE = 1\n")
    with pytest.raises(MethodError, match=message):
        get_method("thing")


def test_an_import_error_is_not_hidden_but_harms_no_other_method(install):
    install("vendor_f", {"broken": "vendor_f:Whole"}, "import a_module_that_does_not_exist")
    assert get_method("merge").name == "merge"
    with pytest.raises(ModuleNotFoundError, match="a_module_that_does_not_exist"):
        get_method("broken")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_does_not_exist"):
        all_methods()
