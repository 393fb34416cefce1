from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary
from truedepth.engine.engine import Engine
from truedepth.measuring.step_costs import StepCosts
from truedepth.measuring.step_timing import TOKENS, measure_step_costs
from truedepth.plan import DepthPlan

COSTS = StepCosts(
    num_layers=10,
    begin_seconds=1.0,
    layer_seconds={1: 10.0, 2: 12.0, 5: 15.0},
    head_seconds={1: 30.0, 2: 33.0, 5: 36.0},
    draft_head_seconds={100: 4.0},
    pair_seconds={"lp": 16.0, "par": 20.0},
)


def test_a_plain_step() -> None:
    assert COSTS.plain_seconds() == 1 + 10 * 10 + 30


def test_a_round_of_an_exit_runs_its_layers_once_a_token() -> None:
    plan = DepthPlan.of_layers(range(4), 10)
    drafting = 2 * (1 + 4 * 10 + 30)
    last = 1 + 4 * 10
    verifying = 1 + 6 * 13 + 34  # of three tokens, a third of the way from two to five
    assert COSTS.round_seconds(plan, None, 2) == pytest.approx(drafting + last + verifying)
    assert COSTS.round_seconds(plan, 100, 2) == pytest.approx(drafting - 2 * 26 + last + verifying)


def test_what_is_not_shared_runs_for_drafting_and_again_for_verifying() -> None:
    plan = DepthPlan.parse("0-2 4 (5|6) 9", 10, "lp")
    drafting = 1 + 3 * 10 + (10 + 16 + 10) + 30
    last = 1 + 3 * 10
    verifying = 1 + 7 * 12 + 33
    assert COSTS.round_seconds(plan, None, 1) == pytest.approx(drafting + last + verifying)


def test_a_wider_group_adds_for_each_further_layer_what_the_second_did() -> None:
    pairs, three = (DepthPlan.parse(text, 10, "lp") for text in ("(0|1) 3", "(0|1|2) 3"))
    assert COSTS.round_seconds(three, None, 1) - COSTS.round_seconds(pairs, None, 1) == pytest.approx(6)


def test_tokens_beyond_those_measured_go_on_along_the_line() -> None:
    plan = DepthPlan.of_layers(range(9), 10)
    costs = [COSTS.round_seconds(plan, None, length) for length in (5, 6, 7)]
    assert costs[2] - costs[1] == pytest.approx(costs[1] - costs[0])


def test_only_a_pair_that_is_cheaper_is_worth_it() -> None:
    assert COSTS.worth("lp") and not COSTS.worth("par")
    assert not COSTS.model_copy(update={"pair_seconds": {}}).worth("lp")


def test_survives_json() -> None:
    assert StepCosts.model_validate(COSTS.model_dump(mode="json")) == COSTS
    assert StepCosts.model_validate_json(COSTS.model_dump_json()) == COSTS


@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral"])
def test_measures_every_part(name: str, tiny_model: Callable[..., Any]) -> None:
    parts = [DraftVocabulary(torch.arange(8)), DraftVocabulary(torch.arange(16))]
    with Engine(tiny_model(name)) as engine:
        costs = measure_step_costs(engine, parts)
    assert costs.num_layers == 6
    assert tuple(costs.layer_seconds) == tuple(costs.head_seconds) == TOKENS
    assert set(costs.draft_head_seconds) == {8, 16}
    assert set(costs.pair_seconds) == {"lp", "par"}
    every = [costs.begin_seconds, *costs.layer_seconds.values(), *costs.head_seconds.values()]
    assert all(seconds > 0 for seconds in [*every, *costs.draft_head_seconds.values(), *costs.pair_seconds.values()])
    assert all(seconds >= costs.layer_seconds[1] for seconds in costs.pair_seconds.values())


def test_a_short_context_is_kept_to(tiny_model: Callable[..., Any]) -> None:
    with Engine(tiny_model("llama", max_position_embeddings=24)) as engine:
        assert measure_step_costs(engine, []).plain_seconds() > 0
