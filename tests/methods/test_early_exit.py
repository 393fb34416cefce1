from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truedepth.errors import MethodError
from truedepth.methods.early_exit import EarlyExit


@given(num_layers=st.integers(1, 100), data=st.data())
def test_keeps_the_first_layers(num_layers, data):
    exit_ = data.draw(st.integers(1, num_layers))
    plan = EarlyExit(exit=exit_).plan(num_layers)
    assert [stage.layers[0] for stage in plan.stages] == list(range(exit_))
    assert plan.num_layers == num_layers
    assert plan.prefill == "plan"


@pytest.mark.parametrize(
    ("exit_", "message"),
    [(0, "parameter 'exit' is 0"), (9, "exit is 9, but the model has 8 layers; choose 1 to 8")],
)
def test_an_exit_outside_the_model(exit_, message):
    with pytest.raises(MethodError, match=message):
        EarlyExit(exit=exit_).plan(8)
