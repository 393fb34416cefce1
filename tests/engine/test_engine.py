"""The engine by itself: plain decoding is that of `transformers`, requests are independent, bad ones are refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch

from truedepth.engine.drafts.policy import FixedPolicy
from truedepth.engine.engine import Engine
from truedepth.engine.sampling.logits_sampler import SamplingParams
from truedepth.engine.sampling.request import Request
from truedepth.engine.sampling.result import GenerationResult
from truedepth.errors import DecodingError, UnsupportedModelError, UsageError
from truedepth.models.rewire import apply, restore


def tokens(results: Sequence[GenerationResult]) -> list[tuple[int, ...]]:
    return [result.token_ids for result in results]


# Plain decoding


def test_every_family_writes_what_transformers_writes(
    family_name: str, tiny_model: Any, asked: Any, generated: Any
) -> None:
    """A batch of unequal prompts that end unequally, past the sliding windows."""
    model, requests = tiny_model(family_name), asked([6, 9, 4, 5])
    expected = generated(model, requests)
    with Engine(model) as engine:
        assert tokens(engine.generate(requests)) == expected
        assert tokens(engine.generate(requests[1:2])) == expected[1:2]
    assert generated(model, requests[:1]) == expected[:1]


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize(
    "target",
    [
        ("0 2 4 5", "lp", "plan"),
        ("0 2 4 5", "lp", "full"),
        ("1-4", "lp", "full"),
        ("0 (1|2) 4 5", "par", "plan"),
        ("5 3 0 (1|4)", "lp", "plan"),
        ("3", "lp", "full"),
    ],
    ids=" ".join,
)
def test_a_target_is_the_model_with_that_plan(
    name: str, target: tuple[str, str, str], tiny_model: Any, plan_of: Any, asked: Any, generated: Any
) -> None:
    model, requests = tiny_model(name), asked([6, 9, 4, 7])
    expected = generated(apply(model, plan_of(*target)), requests)
    with Engine(restore(model), target=plan_of(*target)) as engine:
        assert tokens(engine.generate(requests)) == expected
    with Engine(apply(model, plan_of("0-1")), target=plan_of(*target)) as engine:  # another plan in place
        assert tokens(engine.generate(requests)) == expected


def test_results_come_in_the_order_of_the_requests(tiny_model: Any, prompts: list[list[int]]) -> None:
    requests = [Request(prompts[at], new, ignore_end=True) for at, new in ((2, 3), (1, 6), (0, 1), (3, 4), (1, 2))]
    with Engine(tiny_model("qwen2")) as engine:
        together = engine.generate(requests)
        assert tokens(together) == [engine.generate([request])[0].token_ids for request in requests]
    assert [result.prompt_tokens for result in together] == [11, 1, 5, 5, 1]
    assert [len(result.token_ids) for result in together] == [3, 6, 1, 4, 2]


def test_the_steps_add_up_to_the_results(tiny_model: Any, plan_of: Any, asked: Any) -> None:
    with Engine(tiny_model("llama")) as engine:
        for drafts in ([], [engine.draft(plan_of("0 1 (2|3) 4 5"))]):
            sequences = engine.sequences(asked([9, 1, 12, 5]))
            texts: dict[int, list[int]] = {0: [], 1: [], 2: [], 3: []}
            for updates in engine.steps(sequences, drafts=drafts, policy=FixedPolicy(3)):
                for sequence, count in updates:
                    texts[sequence.index] += sequence.tokens[len(sequence.tokens) - count :]
                    assert count >= 1
            results = [sequence.result() for sequence in sequences]
            assert [tuple(texts[at]) for at in range(4)] == tokens(results)
            for result in results:
                assert 0 < result.timings.prefill <= result.timings.first_token <= result.timings.total


def test_what_ends_a_text(tiny_model: Any, asked: Any) -> None:
    model = tiny_model("llama")
    with Engine(model) as engine:
        longest = tokens(engine.generate(asked(10)))
        end, stop = longest[0][4], longest[2][2]
        cut = [
            text[: min([len(text), *(text.index(one) + 1 for one in (end, stop) if one in text)])] for text in longest
        ]
        for ends in (end, [end, 63]):
            model.generation_config.eos_token_id = ends
            results = engine.generate(asked(10, ignore_end=False, stop_token_ids=frozenset({stop})))
            assert tokens(results) == cut
            assert [result.finish_reason for result in results] == [
                "stop" if {end, stop} & set(text) else "length" for text in longest
            ]
        assert tokens(engine.generate(asked(10))) == longest, "ignore_end goes on beyond the model's end tokens"
        model.generation_config.eos_token_id = None
        assert tokens(engine.generate(asked(10, ignore_end=False))) == longest


@pytest.mark.parametrize(
    "sampling_params", [SamplingParams(), SamplingParams(temperature=0.7, top_k=9, repetition_penalty=1.3, seed=3)]
)
def test_logprobs_are_those_of_the_model(
    sampling_params: SamplingParams, tiny_model: Any, plan_of: Any, asked: Any
) -> None:
    """Of the target, before sampling changes them, for drafted tokens as for others."""
    model = tiny_model("gemma2")
    with Engine(model) as engine:
        for drafts in ([], [engine.draft(plan_of("0-4"))]):
            for request, result in zip(
                asked([9, 14, 5, 1]),
                engine.generate(
                    asked([9, 14, 5, 1], sampling_params=sampling_params, logprobs=True),
                    drafts=drafts,
                    policy=FixedPolicy(3),
                ),
                strict=True,
            ):
                whole = torch.tensor([[*request.prompt_ids, *result.token_ids]])
                with torch.no_grad():
                    logits = model(whole).logits[0, len(request.prompt_ids) - 1 : -1]  # (T, V)
                expected = logits.log_softmax(-1).gather(1, torch.tensor(result.token_ids)[:, None])[:, 0]
                assert result.logprobs is not None
                torch.testing.assert_close(torch.tensor(result.logprobs), expected, atol=1e-4, rtol=1e-4)
        assert engine.generate(asked(2))[0].logprobs is None


# Independence of the sequences of a batch


@pytest.mark.parametrize("length", [0, 1, 4])
@pytest.mark.parametrize("ends", [(), range(0, 64, 6)], ids=["no end", "many ends"])
def test_a_seed_gives_the_same_text_alone_and_in_a_batch(
    length: int, ends: Iterable[int], tiny_model: Any, plan_of: Any, prompts: list[list[int]]
) -> None:
    """With ends, too, that are drafted and refused in one sequence while others go on."""
    stop = frozenset(ends)
    requests = [
        Request(
            prompt, new, SamplingParams(temperature=1.3, top_k=top_k, seed=seed), stop_token_ids=stop, ignore_end=True
        )
        for seed, (prompt, new, top_k) in enumerate(zip(prompts, (7, 12, 3, 1), (None, 20, 5, None), strict=True))
    ]
    with Engine(tiny_model("llama")) as engine:
        drafts, policy = [engine.draft(plan_of("0 1 (2|3) 4 5", "par"))], FixedPolicy(length)
        together = tokens(engine.generate(requests, drafts=drafts, policy=policy))
        assert tokens(engine.generate(requests, drafts=drafts, policy=policy)) == together
        for request, text in zip(requests, together, strict=True):
            assert engine.generate([request], drafts=drafts, policy=policy)[0].token_ids == text
        backwards = engine.generate(requests[::-1], drafts=drafts, policy=policy)
        assert tokens(backwards)[::-1] == together


def test_other_seeds_and_no_seed_give_other_texts(tiny_model: Any, prompts: list[list[int]]) -> None:
    with Engine(tiny_model("llama")) as engine:
        for seeds in (range(6), [None] * 6):
            requests = [Request(prompts[0], 12, SamplingParams(temperature=1.0, seed=seed)) for seed in seeds]
            assert len(set(tokens(engine.generate(requests)))) == 6


@pytest.mark.parametrize("drafted", [False, True])
def test_greedy_and_sampled_requests_in_one_batch(
    drafted: bool, tiny_model: Any, plan_of: Any, prompts: list[list[int]]
) -> None:
    ways = [
        SamplingParams(),
        SamplingParams(temperature=1.0, seed=5),
        SamplingParams(repetition_penalty=1.5),
        SamplingParams(temperature=0.8, min_p=0.1, repetition_penalty=1.2, seed=6),
    ]
    requests = [Request(prompt, 10, way, ignore_end=True) for prompt, way in zip(prompts, ways, strict=True)]
    with Engine(tiny_model("llama")) as engine:
        drafts = [engine.draft(plan_of("0 1 (2|3) 4 5"))] if drafted else []
        alone = [engine.generate([request], drafts=drafts, policy=FixedPolicy(3))[0].token_ids for request in requests]
        assert tokens(engine.generate(requests, drafts=drafts, policy=FixedPolicy(3))) == alone
        assert alone[0] == engine.generate(requests[:1])[0].token_ids
        assert alone[2] == engine.generate(requests[2:3])[0].token_ids


def test_a_repetition_penalty_is_that_of_transformers(tiny_model: Any, plan_of: Any, asked: Any) -> None:
    model, penalty = tiny_model("llama"), 1.8
    requests = asked(14, sampling_params=SamplingParams(repetition_penalty=penalty))
    expected = []
    for request in requests:
        ids = torch.tensor([list(request.prompt_ids)])
        output = model.generate(
            ids, max_new_tokens=14, do_sample=False, repetition_penalty=penalty, eos_token_id=None, pad_token_id=0
        )
        expected.append(tuple(output[0, ids.shape[1] :].tolist()))
    with Engine(model) as engine:
        assert tokens(engine.generate(requests)) == expected
        assert tokens(engine.generate(asked(14))) != expected
        assert (
            tokens(engine.generate(requests, drafts=[engine.draft(plan_of("0 1 (2|3) 4 5"))], policy=FixedPolicy(3)))
            == expected
        )


# What cannot be


def test_requests_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="the prompt is empty"):
        Request([])
    for new in (0, -1):
        with pytest.raises(UsageError, match=f"number of new tokens is {new}; it must be at least 1"):
            Request([5], new)
    with pytest.raises(UsageError, match="stop string is empty"):
        Request([5], stop=("end", ""))


def test_requests_that_do_not_fit_the_model(tiny_model: Any) -> None:
    with Engine(tiny_model("llama")) as engine:
        with pytest.raises(UsageError, match="nothing to generate"):
            engine.generate([])
        with pytest.raises(UsageError, match="prompt has 128 tokens, but the model's context is 128"):
            engine.generate([Request([5] * 128, 1)])
        with pytest.raises(UsageError, match="at most 28 new tokens"):
            engine.generate([Request([5] * 100, 29)])
        for token in (-1, 64):
            with pytest.raises(UsageError, match=f"token {token}, but the model knows tokens 0 to 63"):
                engine.generate([Request([5, token], 4)])
        with pytest.raises(UsageError, match="stop strings need a tokenizer"):
            engine.generate([Request([5], 4, stop=("end",))])
        assert len(engine.generate([Request([5] * 100, 28, ignore_end=True)])[0].token_ids) == 28


def test_the_whole_context_can_be_used_with_a_draft(tiny_model: Any, plan_of: Any) -> None:
    """Drafting looks beyond the last token, and even beyond the model's context."""
    request = Request([5, 9, 13, 40] * 28, 16, ignore_end=True)
    with Engine(tiny_model("qwen3")) as engine:
        expected = engine.generate([request])[0].token_ids
        draft = engine.draft(plan_of("0-4"))
        assert engine.generate([request], drafts=[draft], policy=FixedPolicy(32))[0].token_ids == expected


def test_an_unknown_model_is_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11, n_positions=16))
    with pytest.raises(UnsupportedModelError, match="gpt2"):
        Engine(model)


def poisoned(model: Any, layer: int) -> Any:
    with torch.no_grad():
        model.model.layers[layer].mlp.down_proj.weight[3, 3] = torch.nan
    return model


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("target", "draft"),
    [(("0-5",), None), (("0 1 2 5", "lp", "full"), None), (("0 1 2 5",), ("0 4 5",)), (("0 1 2 5",), ("0-5",))],
    ids=str,
)
def test_logits_that_are_not_numbers_are_reported(
    target: Any, draft: Any, temperature: float, tiny_model: Any, plan_of: Any, asked: Any
) -> None:
    """Whether they come with the prompt, or with a drafted token."""
    requests = asked(6, sampling_params=SamplingParams(temperature=temperature))
    with Engine(poisoned(tiny_model("llama"), 4), target=plan_of(*target)) as engine:
        drafts = [] if draft is None else [engine.draft(plan_of(*draft))]
        with pytest.raises(DecodingError, match="not numbers"):
            engine.generate(requests, drafts=drafts, policy=FixedPolicy(3))


@pytest.mark.parametrize("drafted", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("processed", [False, True])
def test_logits_that_stop_being_numbers(
    drafted: bool, temperature: float, processed: bool, tiny_model: Any, plan_of: Any, asked: Any
) -> None:
    """In a plain step, or in verification by layers that the draft does not run, after some that were sound."""
    model = tiny_model("llama")
    sampling_params = SamplingParams(temperature=temperature, repetition_penalty=1.1 if processed else 1.0)
    with Engine(model) as engine:
        drafts = [engine.draft(plan_of("0-2"))] if drafted else []
        steps = engine.steps(
            engine.sequences(asked(9, sampling_params=sampling_params)), drafts=drafts, policy=FixedPolicy(3)
        )
        next(steps)
        next(steps)
        with torch.no_grad():
            model.model.layers[4].input_layernorm.weight[3] = torch.nan
        with pytest.raises(DecodingError, match="not numbers"):
            next(steps)


def test_one_poisoned_sequence_is_noticed_in_a_batch(tiny_model: Any, asked: Any) -> None:
    """Whose prompt holds the token that is not a number, in any row, however the others sample."""
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[60] = torch.nan
    # Seeds with which no sound sequence comes to that token by itself.
    ways = (
        SamplingParams(),
        SamplingParams(temperature=1.0, seed=0),
        SamplingParams(temperature=1.0, top_k=3, min_p=0.1, top_p=0.9, seed=0),
    )
    sound = [Request([5, 6, 7], 3, way) for way in ways]
    with Engine(model) as engine:
        assert len(engine.generate(sound)) == 3
        for way in ways:
            with pytest.raises(DecodingError, match="not numbers"):
                engine.generate([*sound, Request([5, 60, 7], 3, way)])
        assert len(engine.generate(sound)) == 3


# Opening and closing


def test_an_error_inside_leaves_the_model_as_it_was(tiny_model: Any, asked: Any, generated: Any) -> None:
    model = tiny_model("llama")
    expected = generated(model, asked(5))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ZeroDivisionError), Engine(model) as engine:
        steps = engine.steps(engine.sequences(asked(5)))
        next(steps)
        raise ZeroDivisionError
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    assert generated(model, asked(5)) == expected


def test_closing_twice_and_opening_again(tiny_model: Any, asked: Any) -> None:
    model = tiny_model("llama")
    engine = Engine(model)
    expected = tokens(engine.generate(asked(5)))
    engine.close()
    engine.close()
    with Engine(model) as engine:
        assert tokens(engine.generate(asked(5))) == expected


def test_a_model_is_open_in_one_engine_at_a_time(tiny_model: Any, asked: Any) -> None:
    """A second engine would pack what the first has left of the weights, and put that back."""
    model = tiny_model("llama")
    before = model.lm_head.weight.clone()
    with Engine(model) as engine:
        with pytest.raises(UsageError, match="open in another Engine"):
            Engine(model)
        assert engine.generate(asked(3))
    assert model.lm_head.weight.equal(before)


def test_the_model_attends_as_before_afterwards(family_name: str, tiny_model: Any, asked: Any) -> None:
    model, ids = tiny_model(family_name), torch.tensor([[5, 9, 13, 40, 11, 7, 33, 21, 60, 3]])
    attention = model.config._attn_implementation
    with torch.no_grad():
        before = model(ids).logits
        with Engine(model) as engine:
            engine.generate(asked(2))
            steps = engine.steps(engine.sequences(asked(4)))
            next(steps)
            assert model.config._attn_implementation == attention
            torch.testing.assert_close(model(ids).logits, before, atol=1e-4, rtol=1e-4)  # packed, by its own forward
            next(steps)
        assert model(ids).logits.equal(before)


def test_a_model_wrapped_by_peft(tiny_model: Any, asked: Any, generated: Any) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    expected = generated(model.eval(), asked(6))
    with Engine(model) as engine:
        assert tokens(engine.generate(asked(6))) == expected
    with model.disable_adapter():
        assert generated(model, asked(6)) != expected


_SCALED = {
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32},
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


@pytest.mark.parametrize("kind", _SCALED)
def test_beyond_the_original_length(kind: str, tiny_model: Any, plan_of: Any, token_ids: Any, generated: Any) -> None:
    """The context is the scaled one, to its last token, whatever drafts; and the text is that of transformers."""
    rope = {"rope_type": kind, "rope_theta": 1e4, **_SCALED[kind]}
    model = tiny_model("llama", rope_parameters=rope, max_position_embeddings=128 if kind == "llama3" else 32)
    requests = [Request(token_ids(1, 40)[0].tolist(), 88, ignore_end=True)]
    with Engine(model) as engine:
        written = tokens(engine.generate(requests))
        draft = engine.draft(plan_of("0-4"))
        assert tokens(engine.generate(requests, drafts=[draft])) == written
        with pytest.raises(UsageError, match="context of 128; ask for at most 88 new tokens"):
            engine.generate([Request(requests[0].prompt_ids, 89)])
    assert written == generated(model, requests)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_lengths_that_change_the_rotary_embedding_are_refused(kind: str, tiny_model: Any) -> None:
    """Its frequencies differ beyond a length, for all tokens of a pass alike."""
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 10000.0}
    if kind == "longrope":
        rope |= {"partial_rotary_factor": 1.0, "short_factor": [1.0] * 4, "long_factor": [4.0, 5.0, 6.0, 9.0]}
        rope |= {"original_max_position_embeddings": 16}
        model = tiny_model("phi3", rope_parameters=rope, original_max_position_embeddings=16)
    else:
        model = tiny_model("llama", rope_parameters=rope | {"factor": 4.0}, max_position_embeddings=16)
    with Engine(model) as engine:
        assert len(engine.generate([Request([5] * 8, 8, ignore_end=True)])[0].token_ids) == 8
        with pytest.raises(UsageError, match=f"context of 16 .*'{kind}'.*; ask for at most 8 new tokens"):
            engine.generate([Request([5] * 8, 9)])
