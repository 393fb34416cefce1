import json
import math
from pathlib import Path

import pytest

from truedepth.plan import DepthPlan
from truedepth.report import format as wording
from truedepth.search.results import Results

SAMPLE = json.loads((Path(__file__).parent / "sample_results.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (14.86, "14.9"),
        (0.3127, "0.313"),
        (2917.4, "2,917"),
        (1.24e9, "1.2e9"),
        (3e-7, "3.0e-7"),
        (-0.25, "-0.250"),
        (math.inf, "infinite"),
        (math.nan, "not a number"),
    ],
)
def test_a_number_of_any_size_is_short(value: float, shown: str) -> None:
    assert wording.number(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 µs"),
        (0.00098, "980 µs"),
        (0.41, "410 ms"),
        (2.5, "2.50 s"),
        (287.4, "4 min 47 s"),
        (7260, "2 h 1 min"),
    ],
)
def test_durations_have_a_fitting_unit(seconds: float, shown: str) -> None:
    assert wording.duration(seconds) == shown


@pytest.mark.parametrize(("count", "shown"), [(12, "12.0 B"), (538_060_000, "538 MB"), (28.1e9, "28.1 GB")])
def test_sizes_have_a_fitting_unit(count: float, shown: str) -> None:
    assert wording.size(count) == shown


@pytest.mark.parametrize(
    ("notation", "said"),
    [
        ("0-5", "all 6 layers"),
        ("0-3 5", "5 of 6 layers"),
        ("0 (1|2) (3|4) 5", "all 6 layers in 4 stages"),
        ("0 (1|2) 5", "4 of 6 layers in 3 stages"),
        ("0 (1+2) 3-5", "all 6 layers in 5 stages"),
    ],
)
def test_depth_says_layers_and_stages(notation: str, said: str) -> None:
    assert wording.depth(DepthPlan.parse(notation, 6)) == said


def test_the_headline_says_the_measured_speedup() -> None:
    results = Results.model_validate(SAMPLE)
    assert wording.headline(results) == (
        "test-data/sample-30-layers decodes 1.27 times as fast with 28 of 30 layers in 25 stages."
    )
    assert "1.24 to 1.30" in wording.speed_range(results)


def test_a_prediction_is_never_said_to_be_measured() -> None:
    speedup = {"target": 1.25, "predicted": 1.31, "measured": None, "low": None, "high": None}
    results = Results.model_validate(
        {**SAMPLE, "speedup": speedup, "cost": {**SAMPLE["cost"], "source": "two-example-gpus"}}
    )
    assert "should decode 1.31 times as fast on two-example-gpus" in wording.headline(results)
    assert "not measured" in wording.asked(results)
    assert "not measured" in wording.speed_range(results)


def test_a_missed_target_is_said() -> None:
    speedup = {**SAMPLE["speedup"], "measured": 1.20}
    assert "4.0 % short" in wording.asked(Results.model_validate({**SAMPLE, "speedup": speedup}))


def test_a_method_that_comes_to_the_same_plan_is_credited() -> None:
    peer = {**SAMPLE["peers"][0], "notation": SAMPLE["plan"]["notation"], "form": SAMPLE["plan"]["form"]}
    other_form = {**peer, "method": "shapley", "form": "lp"}
    results = Results.model_validate({**SAMPLE, "peers": [peer, other_form]})
    assert wording.credit(results) == "Here block-influence comes to the same plan."
    assert wording.credit(Results.model_validate(SAMPLE)) == ""


def test_an_unchanged_model_is_said() -> None:
    results = Results.model_validate({**SAMPLE, "plan": DepthPlan.full(30).to_dict()})
    assert "stays as it is" in wording.headline(results)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ({"kind": "max_perplexity_ratio", "value": 1.2}, "at most 1.20 times the perplexity"),
        ({"kind": "depth", "value": 25}, "You asked for 25 stages."),
    ],
)
def test_the_other_targets_are_said(target: dict[str, object], said: str) -> None:
    assert said in wording.asked(Results.model_validate({**SAMPLE, "target": target}))
