"""How tokens are chosen: what may be asked for, the draw, and that what comes is distributed as the target is."""

from __future__ import annotations

import gc
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import GenerationConfig

from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary
from truedepth.engine.drafts.policy import FixedPolicy
from truedepth.engine.engine import Engine
from truedepth.engine.sampling.acceptance import accept_sampled
from truedepth.engine.sampling.logits_sampler import LogitsSampler, SamplingParams, draw, most_likely, probabilities
from truedepth.engine.sampling.request import Request
from truedepth.engine.sampling.sequences import SequenceState
from truedepth.errors import DecodingError, UsageError
from truedepth.plan import DepthPlan

# What may be asked for


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": 1.0, "top_k": 0}, "top-k is 0; it must be at least 1"),
        ({"temperature": 1.0, "top_p": 0.0}, "top-p is 0"),
        ({"temperature": 1.0, "top_p": 1.1}, "top-p is 1.1"),
        ({"temperature": 1.0, "min_p": 2.0}, "min-p is 2; it must be at least 0 and at most 1"),
        ({"temperature": 1.0, "min_p": -0.1}, "min-p is -0.1"),
        ({"repetition_penalty": 0.0}, "repetition penalty is 0"),
        ({"repetition_penalty": float("inf")}, "repetition penalty is inf"),
        ({"top_k": 5}, "need sampling; give a temperature above 0"),
        ({"top_p": 0.5}, "need sampling; give a temperature above 0"),
        ({"min_p": 0.5}, "need sampling; give a temperature above 0"),
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SamplingParams(**wrong)


SETTINGS = {
    "temperature": SamplingParams(temperature=1.6),
    "plain": SamplingParams(temperature=1.0),
    "top-k": SamplingParams(temperature=1.3, top_k=4),
    "top-p": SamplingParams(temperature=1.3, top_p=0.8),
    "min-p": SamplingParams(temperature=1.3, min_p=0.12),
    "penalty": SamplingParams(temperature=1.3, repetition_penalty=1.7),
    "all": SamplingParams(temperature=1.3, top_k=6, top_p=0.9, min_p=0.02, repetition_penalty=0.8),
}


@pytest.mark.parametrize(
    "sampling_params", [*SETTINGS.values(), SamplingParams(temperature=2, top_k=3, repetition_penalty=2)]
)
def test_processed_as_transformers_does(sampling_params: SamplingParams, tiny_model: Any, token_ids: Any) -> None:
    """Of several sequences and positions at once, with contexts of unequal lengths."""
    model = tiny_model("llama")
    config = GenerationConfig(
        do_sample=True,
        temperature=float(sampling_params.temperature),
        top_k=sampling_params.top_k or 0,
        top_p=sampling_params.top_p or 1.0,
        min_p=sampling_params.min_p,
        repetition_penalty=float(sampling_params.repetition_penalty),
    )
    theirs = model._get_logits_processor(config, input_ids_seq_length=4)
    logits = torch.randn(3, 2, 64, generator=torch.Generator().manual_seed(0)) * 4
    before = logits.clone()
    contexts = [[token_ids(1, 3 + row + position)[0].tolist() for position in range(2)] for row in range(3)]
    processed = LogitsSampler.of(sampling_params).process(logits, contexts)
    for row, position in itertools.product(range(3), range(2)):
        expected = theirs(torch.tensor([contexts[row][position]]), logits[row, position, None])
        torch.testing.assert_close(processed[row, position, None], expected)
    assert logits.equal(before), "log probabilities are told from them afterwards"


def test_sequences_that_sample_alike_are_processed_together() -> None:
    sampling_params = SamplingParams(temperature=0.7, top_k=5, seed=1)
    assert LogitsSampler.of(sampling_params) is LogitsSampler.of(replace(sampling_params, seed=2))
    assert LogitsSampler.of(sampling_params) is not LogitsSampler.of(replace(sampling_params, top_k=6))


# The draw

WEIGHTS = st.lists(st.one_of(st.just(0.0), st.floats(2**-100, 2**20, width=32)), min_size=1, max_size=8).filter(any)


@given(weights=WEIGHTS, number=st.floats(0, 1, exclude_max=True))
def test_a_draw_follows_the_cumulated_weights(weights: list[float], number: float) -> None:
    (token,) = draw(torch.tensor([weights]), torch.tensor([number], dtype=torch.float64)).tolist()
    assert weights[token] > 0
    held = torch.tensor(weights).double()
    slack = 1e-9 * float(held.sum())
    assert float(held[:token].sum()) <= number * float(held.sum()) + slack
    assert number * float(held.sum()) <= float(held[: token + 1].sum()) + slack


@given(weights=st.lists(st.integers(0, 4), min_size=1, max_size=8).filter(any))
def test_draws_over_all_numbers_come_as_often_as_their_weights(weights: list[int]) -> None:
    total = sum(weights)
    numbers = (torch.arange(10 * total, dtype=torch.float64) + 0.5) / (10 * total)
    tokens = draw(torch.tensor(weights).float().expand(10 * total, -1), numbers)
    assert tokens.bincount(minlength=len(weights)).tolist() == [10 * weight for weight in weights]


def test_logits_that_are_not_numbers() -> None:
    sound = torch.tensor([[0.0, -torch.inf, 2.0]])
    assert most_likely(sound).tolist() == [2]
    assert probabilities(sound)[0, 1] == 0
    for broken in ([0.0, torch.nan, 1.0], [-torch.inf] * 3, [torch.nan] * 3):
        for function in (most_likely, probabilities):
            with pytest.raises(DecodingError, match="not numbers"):
                function(torch.cat([sound, torch.tensor([broken])]))


# The distribution of texts

VOCABULARY, PROMPT, DRAWN = 8, [3, 4, 5], 3
PART = DraftVocabulary(torch.tensor([6, 2, 3, 5, 0]))


@pytest.fixture(scope="module")
def tiny_vocabulary(tiny_model: Any) -> Any:
    """Two layers over eight tokens, whose first layer is a fair draft of both."""
    model = tiny_model(
        "llama",
        vocab_size=VOCABULARY,
        num_hidden_layers=2,
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    with torch.no_grad():
        model.lm_head.weight *= 3
    return model


def exact(model: Any, sampling_params: SamplingParams) -> Tensor:
    """The probability of each continuation of `PROMPT` by three tokens, (V, V, V), from the model's own forward."""
    processors, law = sampling_params.processors(), torch.ones(1, dtype=torch.float64)
    for position in range(DRAWN):
        runs = torch.tensor([[*PROMPT, *run] for run in itertools.product(range(VOCABULARY), repeat=position)])
        with torch.no_grad():
            logits = model(runs).logits[:, -1]  # (V ** position, V)
        law = (law[:, None] * processors(runs, logits).double().softmax(-1)).flatten()
    return law.view([VOCABULARY] * DRAWN)


def counted(
    engine: Engine, sampling_params: SamplingParams, samples: int, vocabulary: DraftVocabulary | None
) -> Tensor:
    """How often each continuation comes, (V, V, V): the first token by the prompt, the others drafted two at a time."""
    draft, counts, batch = (
        engine.draft(DepthPlan.parse("0", 2), vocabulary=vocabulary),
        Counter[tuple[int, ...]](),
        5000,
    )
    for first in range(0, samples, batch):
        requests = [
            Request(PROMPT, DRAWN + 1, replace(sampling_params, seed=seed), ignore_end=True)
            for seed in range(first, min(first + batch, samples))
        ]
        sequences = [SequenceState(index, request, frozenset(), None) for index, request in enumerate(requests)]
        samplers = [LogitsSampler.of(sampling_params)] * len(sequences)
        for _ in engine.steps(sequences, drafts=[draft], policy=FixedPolicy(2), samplers=samplers):
            pass
        counts.update(tuple(sequence.tokens[len(PROMPT) : len(PROMPT) + DRAWN]) for sequence in sequences)
        taken = [step for sequence in sequences for step in sequence.steps]
        assert 0 < sum(step.accepted for step in taken) < sum(step.drafted for step in taken)
    table = torch.zeros([VOCABULARY] * DRAWN)
    for run, count in counts.items():
        table[run] = count
    return table


def chi_square_p(counts: Tensor, law: Tensor) -> float:
    """The chance of counts at least as far from the law. Cells that expect fewer than 10 samples count as one."""
    samples = float(counts.sum())
    assert counts[law == 0].sum() == 0, "a continuation without probability has come"
    expected, seen = (law * samples).flatten(), counts.flatten().double()
    many = expected >= 10
    cells = torch.cat([expected[many], expected[~many].sum()[None]])
    found = torch.cat([seen[many], seen[~many].sum()[None]])
    cells, found = cells[cells >= 10], found[cells >= 10]
    statistic = ((found - cells) ** 2 / cells).sum()
    assert len(cells) > 20, "too few cells to tell anything"
    return float(torch.special.gammaincc(torch.tensor((len(cells) - 1) / 2, dtype=torch.float64), statistic / 2))


@pytest.fixture
def without_garbage_collection() -> Iterator[None]:
    """Thousands of living objects make it slow, and none of them is in a cycle."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.slow
@pytest.mark.usefixtures("without_garbage_collection")
@pytest.mark.parametrize("vocabulary", [None, PART], ids=["whole vocabulary", "part"])
@pytest.mark.parametrize("name", ["temperature", "top-k", "top-p", "min-p"])
def test_100000_texts_are_distributed_as_the_targets(
    name: str, vocabulary: DraftVocabulary | None, tiny_vocabulary: Any
) -> None:
    law = exact(tiny_vocabulary, SETTINGS[name])
    with Engine(tiny_vocabulary) as engine:
        counts = counted(engine, SETTINGS[name], 100_000, vocabulary)
    assert chi_square_p(counts, law) > 0.001


@pytest.mark.usefixtures("without_garbage_collection")
@pytest.mark.parametrize("name", ["all", "penalty"])
def test_texts_are_distributed_as_the_targets(name: str, tiny_vocabulary: Any) -> None:
    law = exact(tiny_vocabulary, SETTINGS[name])
    with Engine(tiny_vocabulary) as engine:
        counts = counted(engine, SETTINGS[name], 10_000, PART)
    assert chi_square_p(counts, law) > 0.001


def resampling_from_p(
    drafted: Tensor, target: Tensor, draft: Tensor, uniforms: Tensor, limits: Tensor
) -> tuple[Tensor, Tensor]:
    taken, _ = accept_sampled(drafted, target, draft, uniforms, limits)
    return taken, draw(target[torch.arange(len(taken)), taken], uniforms.gather(1, limits[:, None])[:, 0])


def accepting_by_p(
    drafted: Tensor, target: Tensor, draft: Tensor, uniforms: Tensor, limits: Tensor
) -> tuple[Tensor, Tensor]:
    return accept_sampled(drafted, target, draft.clamp_min(0.999), uniforms, limits)


@pytest.mark.usefixtures("without_garbage_collection")
@pytest.mark.parametrize("rule", [resampling_from_p, accepting_by_p])
@pytest.mark.parametrize("vocabulary", [None, PART], ids=["whole vocabulary", "part"])
def test_the_test_notices_a_wrong_rule(
    rule: Callable[..., Any],
    vocabulary: DraftVocabulary | None,
    tiny_vocabulary: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("truedepth.engine.sampling.batch_sampler.accept_sampled", rule)
    law = exact(tiny_vocabulary, SETTINGS["plain"])
    with Engine(tiny_vocabulary) as engine:
        counts = counted(engine, SETTINGS["plain"], 10_000, vocabulary)
    assert chi_square_p(counts, law) < 0.001
