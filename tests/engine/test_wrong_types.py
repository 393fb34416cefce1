"""Arguments of a wrong type, or far out of range, are refused by name and in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import truedepth
from truedepth.errors import DecodingError, PlanError, TruedepthError, UnsupportedModelError, UsageError
from truedepth.models.loading.load import LoadedModel, load_shapes
from truedepth.plan import DepthPlan


@pytest.fixture(scope="module")
def loaded(tiny_folder: Path) -> LoadedModel:
    return truedepth.load(str(tiny_folder))


@pytest.mark.parametrize(
    ("option", "values"),
    {
        "draft": [3, 3.5, True, b"exit:3", ["exit:3", 3], {"exit:3": 1}],
        "plan": [3, True, b"exit:3", ["exit:3"]],
        "stop": [5, None, b"x", [5], True],
        "max_new_tokens": ["3", None, 3.5, True, [3], float("nan"), 10**12, 0],
        "num_speculative_tokens": ["3", 3.5, True, [3], 10**12],
        "sampling_params": [3, "greedy", {"temperature": 1.0}],
        "vocabulary": [3, [3]],
        "raw": ["yes", 1],
        "logprobs": ["yes", 1],
    }.items(),
)
def test_options(option: str, values: list[Any], loaded: LoadedModel) -> None:
    drafts = {"draft": "exit:3"} if option in ("num_speculative_tokens", "vocabulary") else {}
    for value in values:
        with pytest.raises(TruedepthError) as raised:
            truedepth.generate(loaded, "hello", **{"max_new_tokens": 2, **drafts, option: value})
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("prompts", [3, None, b"x", [3], ["a", None], {"a": 1}, object()])
def test_prompts(prompts: Any, loaded: LoadedModel) -> None:
    for write in (truedepth.generate, truedepth.stream):
        with pytest.raises(UsageError, match="prompt"):
            write(loaded, prompts, max_new_tokens=2)


@pytest.mark.parametrize(
    ("option", "values"),
    {
        "temperature": ["1", None, True, [1.0], float("nan"), float("inf"), -1],
        "repetition_penalty": ["1", None, 0, float("nan"), float("inf")],
        "top_k": ["1", 1.5, True, 0],
        "top_p": ["1", float("nan"), 2],
        "min_p": ["1", float("nan"), -1],
        "seed": ["x", 1.5, True],
    }.items(),
)
def test_sampling(option: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(UsageError, match=f"{option.replace('_', '[-_ ]')} is "):
            truedepth.SamplingParams(**{"temperature": 1.0, option: value})


def test_more_than_the_memory(tiny_model: Any) -> None:
    model = tiny_model("llama", max_position_embeddings=10**10)
    with truedepth.Engine(model) as engine:
        for draft in ((), (engine.draft(DepthPlan.of_layers(range(3), 6)),)):
            with pytest.raises(DecodingError, match=r"keys and values .* do not fit into memory: .*fewer new tokens"):
                engine.generate([truedepth.Request([5], 10**9)], drafts=draft)


def test_token_ids() -> None:
    for ids in (None, 3, "abc", [[1]], [1.5]):
        with pytest.raises(UsageError, match="prompt"):
            truedepth.Request(ids)  # type: ignore[arg-type]


def test_models(loaded: LoadedModel, tiny_folder: Path) -> None:
    for source in (3, None, b"x", ["x"]):
        for read in (truedepth.load, load_shapes):
            with pytest.raises(UsageError, match="the model is"):
                read(source)  # type: ignore[arg-type]
    assert truedepth.load(tiny_folder).name == str(tiny_folder)
    for wrong in ({"dtype": 3}, {"dtype": None}, {"device": 3}, {"device": None}, {"trust_remote_code": "no"}):
        with pytest.raises(UsageError):
            truedepth.load(tiny_folder, **wrong)  # type: ignore[arg-type]
    for model in (None, 3, "model", loaded):
        for use in (truedepth.Engine, truedepth.restore, lambda given: truedepth.apply(given, DepthPlan.full(6))):
            with pytest.raises(UnsupportedModelError, match="is not a transformers model"):
                use(model)


def test_plans(loaded: LoadedModel) -> None:
    for plan in (None, 3, "exit:3"):
        with pytest.raises(PlanError, match=r"the plan is .*; it must be a DepthPlan"):
            truedepth.apply(loaded.model, plan)  # type: ignore[arg-type]
    for target in (3, "exit:3"):
        with pytest.raises(PlanError, match="target is"):
            truedepth.Engine(loaded.model, target=target)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="tokenizer is 3"):
        truedepth.Engine(loaded.model, 3)  # type: ignore[arg-type]
    for layers in ("6", None, 3.5, True, 10**12):
        for make in (DepthPlan.full, lambda given: DepthPlan.parse("0-999999999", given)):
            with pytest.raises(PlanError, match="layers"):
                make(layers)
    for notation in (3, None, ["0"], "0-999999999", "0-" + "9" * 5000):
        with pytest.raises(PlanError):
            DepthPlan.parse(notation, 6)  # type: ignore[arg-type]
