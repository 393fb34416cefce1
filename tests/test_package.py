"""What the package promises before anything heavy is imported."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import truedepth


def loaded_after(code: str) -> set[str]:
    """Top-level modules in `sys.modules` after running `code` in a fresh interpreter."""
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {line.partition(".")[0] for line in done.stdout.splitlines()}


def test_import_is_light() -> None:
    assert not loaded_after("import truedepth") & {"torch", "transformers", "pydantic", "numpy", "plotly"}


def test_plans_are_exported() -> None:
    plan = truedepth.DepthPlan((truedepth.Stage((0, 1)),), num_layers=2)
    assert plan.notation == "(0|1)"


def test_lazy_exports_resolve_to_the_library_functions() -> None:
    from truedepth.models import rewire

    assert truedepth.apply is rewire.apply
    assert truedepth.restore is rewire.restore


@pytest.mark.parametrize(
    "name", ["truedepth", "truedepth.export", "truedepth.methods", "truedepth.models", "truedepth.training"]
)
def test_every_public_name_resolves(name: str) -> None:
    package = importlib.import_module(name)
    assert all(hasattr(package, public) for public in package.__all__)
    assert set(package.__all__) <= set(dir(package))


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="'truedepth' has no attribute 'aply'"):
        _ = truedepth.aply  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "page", ["export", "gguf", "layerskip", "loading", "methods", "ranks", "recovery", "rewiring", "training"]
)
def test_pages_import_from_the_package_or_one_level_below(page: str) -> None:
    text = (Path(__file__).parents[1] / "docs" / f"{page}.md").read_text("utf-8")
    assert not re.findall(r"(?:from|import) truedepth\.\w+\.[\w.]+", text)


def test_version_is_the_installed_one() -> None:
    try:
        installed = importlib.metadata.version("truedepth")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("truedepth is not installed here")
    assert installed == truedepth.__version__


def test_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "truedepth", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"truedepth {truedepth.__version__}"
