"""A plan on disk: `plan.yaml`, written by `optimize` and `plan`, read wherever a plan is asked for.

    plan: 0-19 (20|21) (22|23) 24-29     # the notation of truedepth.plan
    layers: 30                           # layers of the source model
    form: lp                             # how groups run
    prefill: plan                        # what the prompt runs

`form` and `prefill` may be left out, and are then as above.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field

from truedepth.errors import PlanError
from truedepth.plan import MOST_LAYERS, DepthPlan, Form, Prefill
from truedepth.records.files import write_atomic
from truedepth.records.yaml_files import read_yaml

PLAN_FILE = "plan.yaml"


class _PlanFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    plan: str
    layers: int = Field(ge=1, le=MOST_LAYERS)
    form: Form = "lp"
    prefill: Prefill = "plan"


def load_plan(path: str | Path) -> DepthPlan:
    """Read a `plan.yaml`, or the one in a run's folder.

    Raises:
        PlanError: the file is missing, is not UTF-8 or YAML (with line and column), has an unknown or missing
            field or a value of the wrong type (by name), or its plan is wrong (by token and column).
    """
    path = Path(path)
    if path.is_dir():
        path = path / PLAN_FILE
    record = read_yaml(path, _PlanFile, "a plan file", PlanError)
    try:
        return DepthPlan.parse(record.plan, record.layers, record.form, record.prefill)
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from None


def save_plan(plan: DepthPlan, path: str | Path, *, comment: str = "") -> None:
    """Write `plan` so that `load_plan` reads back an equal one.

    Args:
        comment: how the plan came about, written above it for people to read.

    Raises:
        OutputError: the file cannot be written.
    """
    fields = {
        "plan": plan.notation,
        "layers": plan.num_layers,
        "form": plan.form,
        "prefill": plan.prefill,
    }
    header = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    write_atomic(Path(path), header + yaml.safe_dump(fields, sort_keys=False, width=float("inf")))
