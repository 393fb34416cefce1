"""The sentences of the main job."""

import json
from pathlib import Path

import pytest

from truedepth.plan import DepthPlan
from truedepth.report.optimize import labels
from truedepth.search.plan_results import Results

SAMPLE = json.loads((Path(__file__).parent / "sample_results.json").read_text(encoding="utf-8"))


def test_the_headline_says_the_measured_speedup() -> None:
    results = Results.model_validate(SAMPLE)
    assert labels.headline(results) == (
        "test-data/sample-30-layers decodes 1.27 times as fast with 28 of 30 layers in 25 stages."
    )
    assert "1.24 to 1.30" in labels.speed_range(results)


def test_a_prediction_is_never_said_to_be_measured() -> None:
    speedup = {"target": 1.25, "predicted": 1.31, "measured": None, "low": None, "high": None}
    results = Results.model_validate(
        {**SAMPLE, "speedup": speedup, "cost": {**SAMPLE["cost"], "source": "two-example-gpus"}}
    )
    assert "should decode 1.31 times as fast on two-example-gpus" in labels.headline(results)
    assert "not measured" in labels.asked(results)
    assert "not measured" in labels.speed_range(results)


def test_a_missed_target_is_said() -> None:
    speedup = {**SAMPLE["speedup"], "measured": 1.20}
    assert "4.0 % short" in labels.asked(Results.model_validate({**SAMPLE, "speedup": speedup}))


def test_a_method_that_comes_to_the_same_plan_is_credited() -> None:
    peer = {**SAMPLE["peers"][0], "notation": SAMPLE["plan"]["notation"], "form": SAMPLE["plan"]["form"]}
    other_form = {**peer, "method": "shapley", "form": "lp"}
    results = Results.model_validate({**SAMPLE, "peers": [peer, other_form]})
    assert labels.credit(results) == "Here block-influence comes to the same plan."
    assert labels.credit(Results.model_validate(SAMPLE)) == ""


def test_an_unchanged_model_is_said() -> None:
    results = Results.model_validate({**SAMPLE, "plan": DepthPlan.full(30).to_dict()})
    assert "stays as it is" in labels.headline(results)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ({"kind": "max_perplexity_ratio", "value": 1.2}, "at most 1.20 times the perplexity"),
        ({"kind": "depth", "value": 25}, "You asked for 25 stages."),
    ],
)
def test_the_other_targets_are_said(target: dict[str, object], said: str) -> None:
    assert said in labels.asked(Results.model_validate({**SAMPLE, "target": target}))
