"""Generation under a plan. What a plan computes without a cache is settled in test_rewire_equations."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, QuantizedCache, StaticCache, cache_utils

from truedepth.errors import UnsupportedModelError
from truedepth.models.rewire import apply, mark_decoding, restore
from truedepth.plan import DepthPlan

TOLERANCE = 1e-5
NUM_LAYERS = 6

PLANS = ["1-5", "0 (1|2) 4 5", "5 3 0 (1|4)"]
"""Without the first layer, with a group, in another order."""


def plan_of(notation: str, prefill: Any = "plan", form: Any = "lp") -> DepthPlan:
    return DepthPlan.parse(notation, NUM_LAYERS, form, prefill)


def applied(model: Any, plan: DepthPlan, **options: Any) -> Any:
    model.generation_config.eos_token_id = None
    return apply(model, plan, **options)


def new_cache(kind: str, model: Any, length: int = 64) -> Cache:
    if kind == "static":
        return StaticCache(config=model.config, max_cache_len=length)
    return DynamicCache(config=model.config) if kind == "dynamic" else DynamicCache()


def in_pieces(model: Any, ids: Tensor, lengths: list[int], cache: Cache) -> Tensor:
    """Logits (B, T, V) of `ids` (B, T), fed in pieces of these lengths and then one by one."""
    pieces = ids.split([*lengths, *[1] * (ids.shape[1] - sum(lengths))], 1)
    return torch.cat([model(piece, past_key_values=cache).logits for piece in pieces], 1)


def largest_error(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())


# Cached against uncached


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("notation", PLANS)
@torch.inference_mode()
def test_cached_equals_uncached(family_name: str, notation: str, kind: str, tiny_model: Any, token_ids: Any) -> None:
    """Over a prompt, several tokens at once, and single tokens; past the sliding windows of 8 and 12."""
    model, ids = applied(tiny_model(family_name), plan_of(notation)), token_ids(2, 20)
    expected = model(ids, use_cache=False).logits
    assert largest_error(in_pieces(model, ids, [5, 9], new_cache(kind, model)), expected) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "notation", "kind"),
    [
        ("llama", "1-5", "dynamic without config"),
        ("gemma2", "(1|2) 5", "dynamic without config"),
        ("mistral", "0 (1+2) 5", "dynamic"),
        ("gemma3", "(1+2) (4+5)", "static"),
    ],
)
@torch.inference_mode()
def test_cached_equals_uncached_elsewhere(name: str, notation: str, kind: str, tiny_model: Any, token_ids: Any) -> None:
    """Caches that know nothing of windows, and merged layers."""
    model, ids = applied(tiny_model(name), plan_of(notation)), token_ids(2, 20)
    expected = model(ids, use_cache=False).logits
    assert largest_error(in_pieces(model, ids, [5, 9], new_cache(kind, model)), expected) <= TOLERANCE


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3"])
@torch.inference_mode()
def test_prompt_of_one_token(name: str, tiny_model: Any, token_ids: Any) -> None:
    model, ids = applied(tiny_model(name), plan_of("1 (3|4)")), token_ids(2, 6)
    expected = model(ids, use_cache=False).logits
    assert largest_error(in_pieces(model, ids, [], DynamicCache(config=model.config)), expected) <= TOLERANCE


@torch.inference_mode()
def test_prompt_of_one_token_reads_every_layer_where_prompts_do(tiny_model: Any, token_ids: Any) -> None:
    model, ids = tiny_model("llama"), token_ids(2, 1)
    base = model(ids).logits
    apply(model, plan_of("0 3", "full"))
    assert largest_error(model(ids, use_cache=True).logits, base) == 0.0
    assert largest_error(model(ids, use_cache=False).logits, base) == 0.0


@pytest.mark.parametrize("name", ["qwen2", "smollm3"])
@torch.inference_mode()
def test_windows_in_some_layers_only(name: str, tiny_model: Any, token_ids: Any) -> None:
    """Families whose checkpoints may mix attention types, though the usual ones do not."""
    kinds = [*["full_attention"] * 2, *["sliding_attention"] * 4]
    model = tiny_model(name, use_sliding_window=True, sliding_window=8, max_window_layers=2, layer_types=kinds)
    ids = token_ids(2, 20)
    applied(model, plan_of("(1|3) 4"))
    assert largest_error(in_pieces(model, ids, [9], DynamicCache(config=model.config)), model(ids).logits) <= TOLERANCE


# generate against decoding by hand


def continued(model: Any, ids: Tensor, steps: int, choose: Any) -> Tensor:
    """`ids` (B, T) and `steps` more tokens, chosen from logits (B, V) of a forward without a cache."""
    for _ in range(steps):
        ids = torch.cat([ids, choose(model(ids, use_cache=False).logits[:, -1])], 1)
    return ids


def greedy(logits: Tensor) -> Tensor:
    return logits.argmax(-1, keepdim=True)


def sampled(logits: Tensor) -> Tensor:
    return torch.multinomial(logits.softmax(-1), 1)


def beam_searched(model: Any, ids: Tensor, steps: int, beams: int) -> Tensor:
    """The best of `beams` sequences, for `ids` (1, T)."""
    sequences, scores = ids, torch.zeros(1)
    for _ in range(steps):
        logits = model(sequences, use_cache=False).logits[:, -1]  # (beams, V)
        totals = scores[:, None] + logits.log_softmax(-1)
        scores, best = totals.flatten().topk(beams)
        parents, tokens = best // logits.shape[-1], best % logits.shape[-1]
        sequences = torch.cat([sequences[parents], tokens[:, None]], 1)
    return sequences[:1]


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize(("name", "notation"), [("llama", "1-5"), ("gemma3", "0 (1|2) 4 5"), ("mistral", "2 5 4")])
@torch.inference_mode()
def test_generate_equals_decoding_by_hand(name: str, notation: str, kind: str, tiny_model: Any, token_ids: Any) -> None:
    model, ids = applied(tiny_model(name), plan_of(notation)), token_ids(2, 9)
    options = {"max_new_tokens": 8, "cache_implementation": kind}
    assert torch.equal(model.generate(ids, do_sample=False, **options), continued(model, ids, 8, greedy))

    torch.manual_seed(5)
    by_hand = continued(model, ids, 8, sampled)
    torch.manual_seed(5)
    assert torch.equal(model.generate(ids, do_sample=True, top_k=0, **options), by_hand)

    beams = model.generate(ids[:1], do_sample=False, num_beams=3, **options)
    assert torch.equal(beams, beam_searched(model, ids[:1], 8, 3))


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("notation", ["1-5", "0 (1|2|3) 4"])
@torch.inference_mode()
def test_padded_batch_equals_single_sequences(
    family_name: str, notation: str, kind: str, tiny_model: Any, token_ids: Any
) -> None:
    model, ids = applied(tiny_model(family_name), plan_of(notation, form="par")), token_ids(2, 16)
    mask = torch.ones_like(ids)
    ids[0, :6], mask[0, :6] = 0, 0
    options = {"max_new_tokens": 5, "do_sample": False, "cache_implementation": kind}
    batch = model.generate(ids, attention_mask=mask, **options)[:, 16:]
    singles = [model.generate(row[keep.bool()][None], **options)[:, -5:] for row, keep in zip(ids, mask, strict=True)]
    assert torch.equal(batch, torch.cat(singles))


@pytest.mark.parametrize("notation", ["0 2 4", "2 (4|5)"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3"])
@torch.inference_mode()
def test_prompt_lookup_equals_greedy(name: str, notation: str, tiny_model: Any, token_ids: Any) -> None:
    """It takes rejected tokens back out of the cache."""
    model, ids = applied(tiny_model(name), plan_of(notation)), token_ids(1, 4).repeat(1, 4)
    options = {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=3, **options), model.generate(ids, **options))


# Plans whose prompts run every layer


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
@torch.inference_mode()
def test_generate_with_full_prefill(name: str, kind: str, tiny_model: Any, token_ids: Any) -> None:
    """Greedy and beams over padded batches equal forwards by hand over one cache a sequence."""
    model = applied(tiny_model(name), plan_of("1 3 5", "full"))
    ids = token_ids(2, 14)
    mask = torch.ones_like(ids)
    ids[0, :5], mask[0, :5] = 0, 0
    options = {"max_new_tokens": 6, "do_sample": False, "cache_implementation": kind}

    def by_hand(prompt: Tensor) -> Tensor:
        cache, tokens = DynamicCache(config=model.config), [prompt]
        while len(tokens) <= 6:
            tokens.append(greedy(model(tokens[-1], past_key_values=cache).logits[:, -1]))
        return torch.cat(tokens[1:], 1)

    expected = torch.cat([by_hand(ids[:1, 5:]), by_hand(ids[1:])])
    assert torch.equal(model.generate(ids, attention_mask=mask, **options)[:, 14:], expected)
    beams = model.generate(ids, attention_mask=mask, num_beams=2, **options)[:, 14:]
    alone = model.generate(ids[1:], num_beams=2, **options)[:, 14:]
    assert torch.equal(beams[1:], alone)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@torch.inference_mode()
def test_prompt_in_chunks_reads_every_layer(kind: str, tiny_model: Any, token_ids: Any) -> None:
    model, ids = tiny_model("gemma3"), token_ids(2, 18)
    base = model(ids).logits
    applied(model, plan_of("0 4", "full"))
    assert largest_error(in_pieces(model, ids, [7, 4, 7], new_cache(kind, model)), base) <= TOLERANCE
    options = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(ids, prefill_chunk_size=6, **options), model.generate(ids, **options))


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@torch.inference_mode()
def test_second_turn_follows_the_plan(kind: str, tiny_model: Any, token_ids: Any) -> None:
    """Several tokens at once on a cache that has decoded are what single tokens would have been."""
    model, ids = applied(tiny_model("gemma2"), plan_of("1 (3|4)", "full")), token_ids(2, 20)
    one_by_one = in_pieces(model, ids, [8], new_cache(kind, model))
    cache = new_cache(kind, model)
    first = in_pieces(model, ids[:, :11], [8], cache)
    second = model(ids[:, 11:], past_key_values=cache).logits
    assert largest_error(torch.cat([first, second], 1), one_by_one) <= TOLERANCE


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@torch.inference_mode()
def test_mark_decoding_makes_several_tokens_follow_the_plan(kind: str, tiny_model: Any, token_ids: Any) -> None:
    model, ids = applied(tiny_model("llama"), plan_of("1 (3|4)", "full")), token_ids(2, 20)
    cache = new_cache(kind, model)
    prompt = model(ids[:, :8], past_key_values=cache).logits
    mark_decoding(cache)
    rest = model(ids[:, 8:], past_key_values=cache).logits
    one_by_one = in_pieces(model, ids, [8], new_cache(kind, model))
    assert largest_error(torch.cat([prompt, rest], 1), one_by_one) <= TOLERANCE


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@torch.inference_mode()
def test_reset_cache_takes_a_new_prompt(kind: str, tiny_model: Any, token_ids: Any) -> None:
    model = applied(tiny_model("mistral"), plan_of("2 3", "full"))
    cache, ids = new_cache(kind, model), token_ids(2, 12, seed=2)
    in_pieces(model, token_ids(2, 15), [9], cache)
    cache.reset()
    assert torch.equal(in_pieces(model, ids, [9], cache), in_pieces(model, ids, [9], new_cache(kind, model)))


@torch.inference_mode()
def test_copied_cache_goes_its_own_way(tiny_model: Any, token_ids: Any) -> None:
    """One prompt, several continuations: the usual way to reuse a prefix."""
    model, ids = applied(tiny_model("llama"), plan_of("0 5", "full")), token_ids(2, 16)
    cache = new_cache("dynamic", model)
    model(ids[:, :8], past_key_values=cache)
    expected = in_pieces(model, ids, [8], new_cache("dynamic", model))[:, 8:]
    for _ in range(2):
        branch = copy.deepcopy(cache)
        assert largest_error(in_pieces(model, ids[:, 8:], [], branch), expected) <= TOLERANCE


# The skipped layers' caches


def bytes_of(cache: Cache, layer: int) -> int:
    entry = cache.layers[layer]
    return sum(held.untyped_storage().nbytes() for held in (entry.keys, entry.values) if held is not None)


@pytest.mark.parametrize(("name", "measured"), [("llama", {0}), ("mistral", {0}), ("gemma3", {0, 2})])
@torch.inference_mode()
def test_skipped_caches_are_freed_at_the_first_decode_step(
    name: str, measured: set[int], tiny_model: Any, token_ids: Any
) -> None:
    """Of the skipped layers whose length transformers asks for, one number a token stays."""
    plan, ids = plan_of("1 (3|4)", "full"), token_ids(2, 16)
    kept = applied(tiny_model(name), plan)
    freed = applied(tiny_model(name), plan, free_skipped_cache=True)
    cache = new_cache("dynamic", freed)
    freed(ids[:, :10], past_key_values=cache)
    assert all(bytes_of(cache, layer) >= 2 * 2 * 10 * 16 * 4 for layer in range(NUM_LAYERS))  # B, T, 2 heads of 8
    freed(ids[:, 10:11], past_key_values=cache)
    for layer in plan.layers_skipped:
        assert bytes_of(cache, layer) <= (2 * 2 * 11 * 4 if layer in measured else 0)
    assert cache.get_seq_length() == 11

    options = {"max_new_tokens": 10, "do_sample": False}
    assert torch.equal(freed.generate(ids, **options), kept.generate(ids, **options))
    beams = {**options, "num_beams": 3}
    assert torch.equal(freed.generate(ids, **beams), kept.generate(ids, **beams))


@torch.inference_mode()
def test_static_cache_allocates_nothing_for_skipped_layers(tiny_model: Any, token_ids: Any) -> None:
    model = applied(tiny_model("llama"), plan_of("1 (3|4)"))
    cache = new_cache("static", model, length=20)
    in_pieces(model, token_ids(1, 12), [10], cache)
    sizes = [bytes_of(cache, layer) for layer in range(NUM_LAYERS)]
    used = 2 * 20 * 16 * 4  # keys and values, 20 positions, 2 heads of 8, float32
    assert sizes == [2 * 20 * 4, used, 0, used, used, 0]


@torch.inference_mode()
def test_skipped_caches_are_kept_unless_asked(tiny_model: Any, token_ids: Any) -> None:
    model = applied(tiny_model("llama"), plan_of("0 5", "full"))
    cache, ids = new_cache("dynamic", model), token_ids(1, 12)
    in_pieces(model, ids, [10], cache)
    assert cache.layers[3].keys.shape[-2] == 10


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("prefill", ["plan", "full"])
@pytest.mark.parametrize(
    ("name", "kind"), [("llama", "dynamic without config"), ("mistral", "dynamic"), ("gemma3", "dynamic")]
)
@torch.inference_mode()
def test_cache_can_be_cropped(name: str, kind: str, prefill: Any, free: bool, tiny_model: Any, token_ids: Any) -> None:
    """Rejected tokens are taken back, as speculative decoding does; those of the prompt as well."""
    model = applied(tiny_model(name), plan_of("1 (3|4)", prefill), free_skipped_cache=free)
    ids = token_ids(2, 16)
    expected = in_pieces(model, ids, [6], new_cache(kind, model))
    for prompt, decoded in ((6, 4), (6, 0)):
        cache, seen = new_cache(kind, model), prompt + decoded
        cache.activate_past_recording()
        if decoded:
            in_pieces(model, ids[:, :seen], [prompt], cache)
            model(token_ids(2, 3, seed=9), past_key_values=cache)
        else:
            model(torch.cat([ids[:, :seen], token_ids(2, 3, seed=9)], 1), past_key_values=cache)
        cache.crop(-3)
        assert cache.get_seq_length() == seen
        torch.testing.assert_close(in_pieces(model, ids[:, seen:], [], cache), expected[:, seen:], rtol=0, atol=1e-5)


@pytest.mark.skipif(not hasattr(cache_utils, "Fp8QuantizedLayer"), reason="no cache is quantized by torch alone")
@pytest.mark.parametrize("prefill", ["plan", "full"])
@torch.inference_mode()
def test_quantized_cache(prefill: Any, tiny_model: Any, token_ids: Any) -> None:
    """Close to the exact one, and refused where the first layer is skipped."""
    model, ids = applied(tiny_model("llama"), plan_of("0 (3|4)", prefill)), token_ids(2, 12)
    logits, exact = (
        in_pieces(model, ids, [6], cache)
        for cache in (QuantizedCache("fp8", model.config), DynamicCache(config=model.config))
    )
    assert largest_error(logits, exact) < 0.2 * float(exact.std())
    apply(model, plan_of("1 3", prefill))
    with pytest.raises(UnsupportedModelError, match="the plan skips layer 0, whose entry in a quantized cache"):
        in_pieces(model, ids, [6], QuantizedCache("fp8", model.config))


@torch.inference_mode()
def test_skipped_first_layer_stays_what_its_cache_is(tiny_model: Any, token_ids: Any) -> None:
    """Its entry may be of another type than the hidden states (autocast), or on another device."""
    model, ids = applied(tiny_model("llama"), plan_of("3 4", "full")), token_ids(2, 12)
    cache = new_cache("dynamic", model)
    model(ids[:, :8], past_key_values=cache)
    first = cache.layers[0]
    first.keys, first.values = first.keys.bfloat16(), first.values.bfloat16()
    model(ids[:, 8:9], past_key_values=cache)
    assert (first.keys.dtype, first.values.dtype) == (torch.bfloat16, torch.bfloat16)
    assert first.keys.shape == (2, 2, 9, 8)


@torch.inference_mode()
def test_plan_taken_up_in_the_middle_of_a_sequence(tiny_model: Any, token_ids: Any) -> None:
    """A cache that the unmodified model has filled goes on under a plan, as in a two-phase run by hand."""
    model, ids = tiny_model("gemma3"), token_ids(2, 16)
    cache = DynamicCache(config=model.config)
    model(ids[:, :9], past_key_values=cache)
    apply(model, plan_of("1 5"))
    rest = in_pieces(model, ids[:, 9:], [3], cache)
    apply(model, plan_of("1 5", "full"))
    expected = in_pieces(model, ids, [9], DynamicCache(config=model.config))[:, 9:]
    assert largest_error(rest, expected) <= TOLERANCE
    restore(model)
