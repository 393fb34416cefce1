"""Files that are nested without end, stand for endless values, or are none: refused in one sentence of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from truedepth.errors import DraftError, PlanError, TruedepthError
from truedepth.plan.plan_file import load_plan
from truedepth.records.json_files import read_json
from truedepth.records.schema import ResultsFile
from truedepth.records.yaml_files import read_yaml

DEEP_JSON = '{"a":' * 100_000 + "1" + "}" * 100_000


class _Results(ResultsFile):
    described_as = "results of a test"
    written_by = "truedepth test"
    value: int


class _Settings(BaseModel):
    number: int
    anything: dict[str, Any] = {}


def refused(read: Any, *args: Any, error: type[Exception] = TruedepthError) -> str:
    with pytest.raises(error) as raised:
        read(*args)
    message = str(raised.value)
    assert "\n" not in message and len(message) < 1000
    return message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (DEEP_JSON, "values lie too deep in each other"),
        ("", "is not JSON"),
        ('{"value": ', "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        ("9" * 6000, "is not JSON"),
        ("[]", "is not results of a test"),
        ('{"value": 1e400}', "is not results of a test"),
        ('{"value": NaN}', "is not results of a test"),
        (None, "cannot read"),
        (Path(), "it is a folder"),
    ],
)
def test_json(content: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content)
    elif content is None:
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.mkdir()
    assert said in refused(_Results.load, path)
    if "JSON" in said:
        refused(read_json, path, DraftError, "make it again", error=DraftError)


def test_yaml(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    bomb = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    for text, said in {
        f"{bomb}number: *a11": "stands for more values than are read",
        "anything: &a {b: *a}\nnumber: 1": "stands for more values than are read",
        "number: " + "[" * 5000 + "]" * 5000: "is not YAML: values lie too deep in each other",
        "number: [" + "1, " * 5000 + "1]": "the field 'number' is [1, 1,",
        "number: " + "9" * 6000: "is not YAML",
        "": "is not settings",
    }.items():
        path.write_text(text)
        assert said in refused(read_yaml, path, _Settings, "settings", TruedepthError)
    path.write_text("anything: {a: &a [1, 2], b: *a}\nnumber: 1")
    assert read_yaml(path, _Settings, "settings", TruedepthError).anything == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize(
    "text",
    [
        "plan: 0-999999999\nlayers: 1000000000",
        "plan: 0-999999999\nlayers: 6",
        f"plan: 0-{'9' * 5000}\nlayers: 6",
        "plan: 0-5\nlayers: .inf",
        "plan: 0-5\nlayers: -6",
        "plan: 0-5\nlayers: 6.0",
    ],
)
def test_plans(text: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    message = refused(load_plan, path, error=PlanError) if len(text) < 500 else None
    assert message is None or "plan.yaml" in message
