"""What a plan changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from truedepth.errors import UnsupportedModelError
from truedepth.models.rewire import apply, restore
from truedepth.plan import DepthPlan
from truedepth.training.recovery.changes import bake_merges, changed_layers


@pytest.mark.parametrize(
    ("notation", "changed"),
    [
        ("0-5", ()),
        ("0 1 (2|3) 4 5", (2, 3)),
        ("0 1 2 4 5", (2, 4)),
        ("0-3", (3,)),
        ("1-5", (1,)),
        ("0 2 1 3 4 5", (0, 1, 2, 3)),
        ("0 2 4", (0, 2, 4)),
        ("0 1 (2+3) 4 5", (2, 3)),
        ("0 (1|3) 4 5", (1, 3)),
        ("0 (1|4) 5", (1, 4)),
    ],
)
def test_changed_layers(notation: str, changed: tuple[int, ...]) -> None:
    assert changed_layers(DepthPlan.parse(notation, 6)) == changed


def test_a_baked_merge_runs_the_same(tiny_model: Any, token_ids: Any) -> None:
    model, ids = tiny_model("llama"), token_ids(2, 8)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    plan = DepthPlan.parse("0 (1+2) 3 (4+5)", 6)
    expected = apply(model, plan)(ids).logits
    restore(model)
    baked, originals = bake_merges(model, plan)
    assert str(baked) == "0 1 3 4"
    torch.testing.assert_close(apply(model, baked)(ids).logits, expected)
    assert {name.split(".")[2] for name in originals} == {"1", "4"}
    assert all(torch.equal(value, weights[name]) for name, value in originals.items())
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items() if ".3." in name)


def test_nothing_to_bake(tiny_model: Any) -> None:
    plan = DepthPlan.parse("0 (1|2) 3", 6)
    assert bake_merges(tiny_model("llama"), plan) == (plan, {})
    with pytest.raises(UnsupportedModelError, match="merge"):
        bake_merges(tiny_model("mixtral"), DepthPlan.parse("0 (1+2) 3", 6))
