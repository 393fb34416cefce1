"""A model cut over ranks computes what it computes in one piece, with as many all-reduces as the formula says."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from truedepth import DepthPlan, Engine, SamplingParams, apply
from truedepth.engine.sampling.request import Request
from truedepth.errors import PlanError, UnsupportedModelError
from truedepth.evaluation.quality import compare_quality, judge, scored_log_probabilities
from truedepth.families import all_families
from truedepth.measuring.on_ranks import count_passes
from truedepth.parallel.partition import pieces_of, require_divisible
from truedepth.parallel.split import split

SPLIT = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
PLANS = ("0-5", "(0|1) 2 (3|4) 5", "1 (2|4) 5", "0 (1+2) (3|5) 4")
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def part_of(whole: Any, plan: DepthPlan, ranks: Any) -> Any:
    """A rank's part of a model, under a plan."""
    model = copy.deepcopy(whole)
    require_divisible(plan, model.config, ranks.size)
    split(model, pieces_of(plan, ranks.rank, ranks.size), ranks)
    return model if plan.is_full else apply(model, plan)


def expected_logits(whole: Any, plan: DepthPlan, ids: torch.Tensor, forced: int) -> list[torch.Tensor]:
    """Of a prompt, and of forced single tokens after it."""
    with torch.no_grad():
        output = whole(ids[:, :-forced], use_cache=True)
        found = [output.logits]
        for at in range(ids.shape[1] - forced, ids.shape[1]):
            output = whole(ids[:, at : at + 1], past_key_values=output.past_key_values, use_cache=True)
            found.append(output.logits)
    return found


@pytest.mark.parametrize("form", ["lp", "par"])
@pytest.mark.parametrize("notation", PLANS)
@pytest.mark.parametrize("name", SPLIT)
def test_two_ranks_give_the_logits_of_one_process(
    name: str,
    notation: str,
    form: Any,
    tiny_model: Callable[..., Any],
    token_ids: Callable[..., torch.Tensor],
    on_threads: Callable[..., list[Any]],
) -> None:
    """By calls of the model: prompt, then single tokens over its cache, which no two ranks fill alike."""
    plan, ids = DepthPlan.parse(notation, 6, form), token_ids(2, 20)
    whole = tiny_model(name)

    def job(ranks: Any) -> tuple[list[torch.Tensor], Any]:
        return expected_logits(part_of(whole, plan, ranks), plan, ids, 3), ranks.traffic

    (first, traffic), (second, _) = on_threads(2, job)
    assert (traffic.all_reduces, traffic.all_gathers) == (4 * plan.all_reduces, 4)
    for own, other, expected in zip(first, second, expected_logits(apply(whole, plan), plan, ids, 3), strict=True):
        torch.testing.assert_close(own, expected, **TOLERANCE)
        torch.testing.assert_close(own, other, rtol=0, atol=0)


def random_plan(numbers: random.Random, form: Any, prefill: Any, size: int) -> DepthPlan:
    """Some of six layers in any order, some of them in groups of `size`."""
    layers = numbers.sample(range(6), numbers.randrange(size, 7))
    stages = []
    while layers:
        count = size if len(layers) >= size and numbers.random() < 0.6 else 1
        own, layers = layers[:count], layers[count:]
        stages.append(str(own[0]) if count == 1 else f"({'|'.join(map(str, own))})")
    return DepthPlan.parse(" ".join(stages), 6, form, prefill)


@pytest.mark.parametrize("prefill", ["plan", "full"])
@pytest.mark.parametrize(
    ("ranks", "size", "form"), [(2, 2, "lp"), (2, 2, "par"), (3, 3, "par"), (4, 2, "lp"), (2, 3, "lp")]
)
def test_the_engine_writes_the_same_tokens(
    ranks: int,
    size: int,
    form: Any,
    prefill: Any,
    tiny_model: Callable[..., Any],
    on_threads: Callable[..., list[Any]],
) -> None:
    """Greedy and by a seed, for plans made at random. A prompt that runs every layer counts as the full model does."""
    numbers = random.Random(repr((ranks, size, form, prefill)))
    shape = {"num_attention_heads": 12, "num_key_value_heads": 12, "head_dim": 8, "hidden_size": 48}
    for name in ("llama", "qwen3"):
        whole, plan = tiny_model(name, **shape), random_plan(numbers, form, prefill, size)
        requests = [
            Request((5, 9, 23, 4, 40), max_new_tokens=6, ignore_end=True),
            Request(
                (3, 8, 50), max_new_tokens=6, ignore_end=True, sampling_params=SamplingParams(temperature=1.0, seed=7)
            ),
        ]

        def job(own: Any, whole: Any = whole, plan: DepthPlan = plan, requests: Any = requests) -> Any:
            with Engine(part_of(whole, plan, own)) as engine:
                return [result.token_ids for result in engine.generate(requests)], own.traffic

        found = on_threads(ranks, job)
        with Engine(apply(whole, plan)) as engine:
            expected = [result.token_ids for result in engine.generate(requests)]
        assert [tokens for tokens, _ in found] == [expected] * ranks, plan
        prompt = DepthPlan.full(6) if prefill == "full" else plan
        # Two prompts of different lengths are two passes; five steps follow.
        assert {traffic.all_reduces for _, traffic in found} == {2 * prompt.all_reduces + 5 * plan.all_reduces}


@pytest.mark.parametrize("prefill", ["plan", "full"])
def test_quality_is_that_of_one_process(
    prefill: Any,
    tiny_model: Callable[..., Any],
    token_ids: Callable[..., torch.Tensor],
    on_threads: Callable[..., list[Any]],
) -> None:
    """Also where no rank but one has the layer that the cache's length is taken from."""
    whole, windows = tiny_model("llama"), token_ids(2, 60)
    plan = DepthPlan.parse("(0|1) 2 (4|5)", 6, "par", prefill)

    def job(ranks: Any) -> Any:
        base, own = part_of(whole, DepthPlan.full(6), ranks), part_of(whole, plan, ranks)
        return judge(
            lambda ids: scored_log_probabilities(base, None, ids),
            {"plan": lambda ids: scored_log_probabilities(own, plan, ids)},
            windows,
        )["plan"]

    expected = compare_quality(whole, {"plan": plan}, windows)["plan"]
    for found in on_threads(2, job):
        assert found.perplexity == pytest.approx(expected.perplexity, rel=1e-5)
        assert found.kl == pytest.approx(expected.kl, rel=1e-3)
        assert found.agreement == expected.agreement


def test_passes_are_counted_apart(tiny_model: Callable[..., Any], on_threads: Callable[..., list[Any]]) -> None:
    whole, plan = tiny_model("llama"), DepthPlan.parse("0 (1|2) 3 (4|5)", 6, "par", "full")
    prompt = torch.tensor([[4, 5, 6]])
    with torch.no_grad():
        for read, decoded in on_threads(2, lambda ranks: count_passes(part_of(whole, plan, ranks), prompt, ranks)):
            assert (read.all_reduces, read.all_gathers) == (12, 1)
            assert (decoded.all_reduces, decoded.all_gathers) == (6, 1)


def test_biases_are_added_once(tiny_model: Callable[..., Any], on_threads: Callable[..., list[Any]]) -> None:
    """Those of o and down, which every rank could add; and a vocabulary that does not divide by the ranks."""
    whole = tiny_model("llama", attention_bias=True, mlp_bias=True, vocab_size=63, tie_word_embeddings=True)
    plan, ids = DepthPlan.parse("0 (1|2|3) 4 5", 6), torch.tensor([[4, 5, 6, 7]])
    with torch.no_grad():
        found = on_threads(2, lambda ranks: _logits(part_of(whole, plan, ranks), ids))
        torch.testing.assert_close(found[1], _logits(apply(whole, plan), ids), **TOLERANCE)


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(ids).logits
    return logits


def test_parts_are_the_whole(tiny_model: Callable[..., Any], on_threads: Callable[..., list[Any]]) -> None:
    """What two ranks hold of a pair is one source layer each, and of what is skipped nothing."""
    whole, plan = tiny_model("llama"), DepthPlan.parse("0 (2|3) 5", 6)
    first, second = on_threads(2, lambda ranks: part_of(whole, plan, ranks))
    for rank, part in enumerate((first, second)):
        for layer in (1, 4, 3 - rank):
            assert not list(part.model.layers[layer].parameters())
        kept, source = part.model.layers[2 + rank].state_dict(), whole.model.layers[2 + rank].state_dict()
        assert all(torch.equal(kept[name], source[name]) for name in source)
    assert first.model.layers[0].self_attn.q_proj.weight.shape == (16, 32)
    held = [
        sum(tensor.numel() for tensor in part.model.layers.parameters() if tensor.dim() > 1) for part in (first, second)
    ]
    used = sum(
        tensor.numel() for i in (0, 2, 3, 5) for tensor in whole.model.layers[i].parameters() if tensor.dim() > 1
    )
    assert held == [used / 2, used / 2]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("notation", ["0-5", "(0|1|2) (3|4) 5", "(0|1|2|3|4|5)", "0 (1+2) 5"])
def test_every_used_layer_is_held_once_over(ranks: int, notation: str) -> None:
    plan = DepthPlan.parse(notation, 6)
    for layer in range(6):
        shares = [held[layer] for rank in range(ranks) if layer in (held := pieces_of(plan, rank, ranks))]
        assert sum(piece.stop - piece.start for piece in shares) == (layer in plan.layers_used)


@pytest.mark.parametrize(
    ("notation", "form", "ranks", "said"),
    [
        ("0 (1|2) 3", "par", 3, r"2 whole layers side by side \(form par\).* 3 ranks; numbers .*: 1, 2$"),
        ("0 (1|2) 3", "lp", 3, r"the 8 attention heads of stage '\(1\|2\)' .* 3 ranks; numbers .*: 1, 2$"),
        ("0 1 2", "lp", 4, r"the 2 key-value heads of stage '0' .* 4 ranks"),
        ("(0|1) (2|3)", "lp", 3, r"the 8 attention heads of stage '\(0\|1\)' .* 3 ranks; numbers .*: 1, 2, 4$"),
    ],
)
def test_numbers_of_ranks_that_cannot_be(
    notation: str, form: Any, ranks: int, said: str, tiny_model: Callable[..., Any]
) -> None:
    with pytest.raises(PlanError, match=said):
        require_divisible(DepthPlan.parse(notation, 6, form), tiny_model("llama").config, ranks)


def test_columns_that_do_not_divide(tiny_model: Callable[..., Any]) -> None:
    config = tiny_model("llama", intermediate_size=47).config
    with pytest.raises(PlanError, match="the 47 FFN columns of stage '0'"):
        require_divisible(DepthPlan.full(6), config, 2)


def test_families_that_cannot_be_cut_are_refused(family_name: str, tiny_model: Any) -> None:
    """Those that can are those that the tests above run."""
    able = {family.name for family in all_families() if "split" not in family.cannot}
    assert able == set(SPLIT)
    if family_name not in able:
        with pytest.raises(UnsupportedModelError, match=f"family {family_name} cannot do 'split': "):
            split(tiny_model(family_name), {}, ranks=None)


def test_grouped_heads_stay_with_their_keys() -> None:
    """Cut at 1/4 of 8 query heads and 4 key heads: two and one."""
    piece = pieces_of(DepthPlan.full(6), 1, 4)[0]
    assert (piece.cut(8), piece.cut(4)) == ((2, 4), (1, 2))
