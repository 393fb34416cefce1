"""Costs fitted to runs whose times we make up, and to a model whose clock counts layers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truedepth.errors import SearchError, UsageError
from truedepth.measuring import speed
from truedepth.measuring.costs import CostModel, MeasuredCosts, probe_plans
from truedepth.measuring.speed import Comparison, TimedRun
from truedepth.plan import DepthPlan, Form

PROBES = {
    "full": DepthPlan.full(6),
    "skip": DepthPlan.parse("0 1 4 5", 6),
    "lp": DepthPlan.parse("(0|1) (2|3) (4|5)", 6, form="lp"),
    "par": DepthPlan.parse("(0|1) (2|3) (4|5)", 6, form="par"),
}


def fit(step_seconds: Mapping[str, Sequence[float]]) -> MeasuredCosts:
    """Of ten steps of each run, one is disturbed."""
    runs = {
        name: tuple(TimedRun(1.0, (2 * seconds, *[seconds] * 9)) for seconds in times)
        for name, times in step_seconds.items()
    }
    return MeasuredCosts.fit(Comparison(runs, 8, 8, 1), {name: PROBES[name] for name in runs})


# Fixed 4, a layer 1, a pair lp 1.5, a pair par 1.75; each round another speed of the machine.
STEADY = {
    "full": [10.0, 10.1, 9.9, 10.0],
    "skip": [8.0, 8.1, 7.9, 8.0],
    "lp": [8.5, 8.6, 8.4, 8.5],
    "par": [9.25, 9.35, 9.15, 9.25],
}


def test_costs_are_found_again() -> None:
    costs = fit(STEADY)
    assert costs.fixed_seconds == pytest.approx(4.0)
    assert costs.layer_seconds == pytest.approx(1.0)
    assert costs.pair_seconds == pytest.approx({"lp": 1.5, "par": 1.75})
    assert costs.worth("lp") and costs.worth("par")
    assert "lp saves 500.000 ms of 2000.000 ms" in costs.note


def test_a_busy_round_does_not_change_what_a_layer_costs() -> None:
    costs = fit({**STEADY, "full": [10.0, 10.1, 9.9, 70.0], "skip": [50.0, 8.1, 7.9, 8.0]})
    assert costs.layer_seconds == pytest.approx(1.0)
    assert costs.fixed_seconds == pytest.approx(4.05)


def test_a_saving_within_the_noise_counts_as_none() -> None:
    # Saved by a pair, round by round: 0.1, -0.1, 0.3, 0.0: the quartiles are further apart than their middle
    # is from nothing.
    costs = fit({**STEADY, "lp": [9.7, 10.4, 9.0, 10.0]})
    assert costs.pair_seconds["lp"] == 2 * costs.layer_seconds
    assert not costs.worth("lp")
    assert costs.worth("par")
    assert "form lp takes no measurable time less" in costs.note


def test_a_clear_loss_is_kept() -> None:
    costs = fit({**STEADY, "lp": [10.6, 10.7, 10.5, 10.6]})
    assert costs.pair_seconds["lp"] == pytest.approx(2.2)
    assert not costs.worth("lp")
    assert "lp loses" in costs.note


def test_a_pair_costs_at_least_a_layer() -> None:
    costs = fit({**STEADY, "lp": [5.0, 5.1, 4.9, 5.0]})
    assert costs.pair_seconds["lp"] == costs.layer_seconds


def test_layers_cost_no_more_than_the_step() -> None:
    costs = fit({**STEADY, "skip": [2.0, 2.1, 1.9, 2.0]})
    assert costs.layer_seconds == pytest.approx(10.0 / 6)
    assert costs.fixed_seconds == pytest.approx(0.0)


def test_skipping_that_saves_nothing_is_refused() -> None:
    with pytest.raises(SearchError, match="2 of 6 layers were skipped"):
        fit({**STEADY, "skip": [10.0, 10.2, 9.9, 10.0]})


COSTS = MeasuredCosts(4.0, 1.0, {"lp": 1.5, "par": 1.75}, "A note.")


@pytest.mark.parametrize(
    ("notation", "form", "seconds"),
    [
        ("0-5", "lp", 10.0),
        ("0 5", "lp", 6.0),
        ("(0|1) 2-5", "lp", 9.5),
        ("(0|1) 2-5", "par", 9.75),
        ("(0|1|2) 3-5", "lp", 9.0),
        ("(0|1|2|3) (4|5)", "par", 4 + 3.25 + 1.75),
        ("(0+1) 2-5", "lp", 9.0),
    ],
)
def test_decode_seconds_by_hand(notation: str, form: Form, seconds: float) -> None:
    plan = DepthPlan.parse(notation, 6, form)
    assert COSTS.decode_seconds(plan) == pytest.approx(seconds)
    assert COSTS.speedup(plan) == pytest.approx(10.0 / seconds)


def test_full_prefill_costs_what_its_decoding_costs() -> None:
    plan = DepthPlan.parse("0 5", 6)
    assert COSTS.decode_seconds(DepthPlan.parse("0 5", 6, prefill="full")) == COSTS.decode_seconds(plan)


def test_a_form_that_was_not_measured() -> None:
    costs = MeasuredCosts(4.0, 1.0, {"par": 1.5}, "A note.")
    assert not costs.worth("lp")
    with pytest.raises(UsageError, match="form 'lp' was not measured"):
        costs.decode_seconds(DepthPlan.parse("(0|1)", 2))
    assert costs.decode_seconds(DepthPlan.full(2)) == 6.0


@given(st.sets(st.integers(0, 11), min_size=1), st.integers(0, 11))
def test_one_layer_less_is_never_slower(layers: set[int], other: int) -> None:
    more = COSTS.speedup(DepthPlan.of_layers(sorted(layers | {other}), 12))
    assert COSTS.speedup(DepthPlan.of_layers(sorted(layers), 12)) >= more


def test_saved_and_read_back() -> None:
    costs: CostModel = fit(STEADY)
    assert isinstance(costs, MeasuredCosts)
    assert MeasuredCosts(**json.loads(json.dumps(asdict(costs)))) == costs


def test_record() -> None:
    record = COSTS.record()
    assert record.source == "measured"
    assert record.pair_seconds == {"lp": 1.5, "par": 1.75}
    assert record.note == "A note."


@pytest.mark.parametrize(
    ("layers", "skip", "pairs"),
    [
        (2, "0", "(0|1)"),
        (5, "0 1 3 4", "(0|1) (2|3) 4"),
        (6, "0 1 4 5", "(0|1) (2|3) (4|5)"),
        (9, "0-2 6-8", "(0|1) (2|3) (4|5) (6|7) 8"),
    ],
)
def test_probes(tiny_model: Callable[..., Any], layers: int, skip: str, pairs: str) -> None:
    probes = probe_plans(tiny_model("llama", num_hidden_layers=layers))
    assert list(probes) == ["full", "skip", "lp", "par"]
    assert probes["full"].is_full
    assert probes["skip"].notation == skip
    assert probes["lp"].notation == probes["par"].notation == pairs
    assert (probes["lp"].form, probes["par"].form) == ("lp", "par")


def test_probes_of_a_single_layer(tiny_model: Callable[..., Any]) -> None:
    with pytest.raises(SearchError, match="single layer"):
        probe_plans(tiny_model("llama", num_hidden_layers=1))


def test_measuring_a_model_whose_stages_take_a_second_each(
    tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock counts one second for each call of a layer (a group makes one) and three for the head."""
    model = tiny_model("llama")
    clock = [0.0]

    def passes(seconds: float) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            clock[0] += seconds

        return hook

    for layer in model.model.layers:
        layer.register_forward_hook(passes(1.0))
    model.lm_head.register_forward_hook(passes(3.0))
    monkeypatch.setattr(speed, "now", lambda device: clock[0])
    costs = MeasuredCosts.measure(model, prompt_tokens=4, new_tokens=2, repeats=3)
    assert costs.layer_seconds == 1.0
    assert costs.fixed_seconds == 3.0
    assert costs.pair_seconds == {"lp": 1.0, "par": 1.0}
    assert costs.speedup(DepthPlan.parse("0 1 (2|3) 5", 6)) == 9.0 / 7.0
