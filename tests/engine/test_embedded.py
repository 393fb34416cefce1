"""Speculation on the embedded model: no token differs from plain decoding, and that is what transformers writes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import truedepth
from truedepth.engine.drafts.heads.packaged import packaged_heads
from truedepth.engine.drafts.policy import FixedPolicy
from truedepth.engine.engine import Engine
from truedepth.engine.sampling.request import Request
from truedepth.methods.plan_text import read_plan
from truedepth.models.loading.embedded import embedded_models
from truedepth.models.loading.load import LoadedModel, load

pytestmark = pytest.mark.slow

NEW = 24
TEXTS = (
    "The capital of France is",
    "Write a haiku about the sea.",
    "def fibonacci(n):\n    ",
    "Question: A train covers 120 km in an hour and a half. How fast is it, and how far does it get in four hours?",
)

DRAFTS = [
    "exit:8",
    "exit:20",
    "0-9 11 12 14-22 24-29",
    "0-9 (10|11) (12|13) (14|15) 16-25 (26|27) 28 29",
    "unified-skipping@1.5",
]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    (model,) = [model for model in embedded_models() if model.name == "smollm2-135m"]
    if not model.installed:
        pytest.skip(f"the embedded model is not installed: {model.install_command}")
    return load(model.name)


@pytest.fixture(scope="module")
def requests(loaded: LoadedModel) -> list[Request]:
    return [Request(loaded.tokenizer(text).input_ids, NEW, ignore_end=True) for text in TEXTS]


@pytest.fixture(scope="module")
def expected(loaded: LoadedModel, requests: list[Request]) -> list[tuple[int, ...]]:
    """What transformers writes."""
    texts, model = [], loaded.model
    for request in requests:
        ids = torch.tensor([list(request.prompt_ids)])
        options: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
        output = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=2, **options)  # type: ignore[operator]
        texts.append(tuple(output[0, ids.shape[1] :].tolist()))
    return texts


@pytest.fixture(scope="module")
def engine(loaded: LoadedModel, expected: list[tuple[int, ...]]) -> Any:
    with Engine(loaded.model, loaded.tokenizer) as engine:
        yield engine


def test_plain_decoding_is_that_of_transformers(
    engine: Engine, requests: list[Request], expected: list[tuple[int, ...]], loaded: LoadedModel
) -> None:
    results = engine.generate(requests)
    assert [result.token_ids for result in results] == expected
    assert [engine.generate([request])[0].token_ids for request in requests] == expected
    assert [result.text for result in results] == [
        loaded.tokenizer.decode(text, skip_special_tokens=True) for text in expected
    ]


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("plan", DRAFTS)
def test_speculation_writes_the_same(
    plan: str, batch: int, engine: Engine, requests: list[Request], expected: list[tuple[int, ...]]
) -> None:
    draft = engine.draft(read_plan(plan, 30))
    written = []
    for first in range(0, len(requests), batch):
        written += engine.generate(requests[first : first + batch], drafts=[draft], policy=FixedPolicy(4))
    assert [result.token_ids for result in written] == expected
    assert sum(result.drafted for result in written) > 0


def test_the_head_that_comes_with_it(loaded: LoadedModel, engine: Engine) -> None:
    """It writes what the model writes, and is right often enough to pay."""
    if loaded.name not in packaged_heads():
        pytest.skip("truedepth-heads is not installed")
    prompts = ["Explain to a child why the sky is blue.", "Write a Python function that reverses a string."]
    plain = truedepth.generate(engine, prompts, max_new_tokens=48)
    drafted = truedepth.generate(engine, prompts, max_new_tokens=48, draft="default", num_speculative_tokens=2)
    assert [result.token_ids for result in drafted] == [result.token_ids for result in plain]
    first = sum(result.acceptance_by_position[0] for result in drafted) / len(drafted)
    assert first > 0.3


def test_in_bfloat16_no_draft_changes_a_token(requests: list[Request]) -> None:
    """Texts long enough that numbers of another rounding would show."""
    half = load("smollm2-135m", dtype="bfloat16")
    longer = [Request(request.prompt_ids, 2 * NEW, ignore_end=True) for request in requests]
    with Engine(half.model, half.tokenizer) as engine:
        assert engine.rounding is None
        plain = [result.token_ids for result in engine.generate(longer)]
        for draft in (engine.default_draft(), *(engine.draft(read_plan(text, 30)) for text in DRAFTS[:2])):
            drafted = engine.generate(longer, drafts=[draft], policy=FixedPolicy(3))
            assert [result.token_ids for result in drafted] == plain
        alone = engine.generate(longer[:1], drafts=[engine.default_draft()], policy=FixedPolicy(5))
        assert alone[0].token_ids == plain[0]
