"""Layer dropout: its probabilities, its decisions, and what it does to a forward and costs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from truedepth.errors import PlanError, UnsupportedModelError
from truedepth.models.rewire import apply, restore
from truedepth.plan import DepthPlan
from truedepth.training.hooks.layer_calls import wrap_layers
from truedepth.training.layerskip.layer_dropout import LayerDropout, depth_factors, draw_skips, time_factor

NUM_LAYERS = 6


# The probabilities


def test_depth_factors_of_four_layers() -> None:
    # 2^(1/3) - 1 and 2^(2/3) - 1
    assert depth_factors(4) == pytest.approx([0, 0.25992105, 0.58740105, 1])


def test_depth_factors_of_thirty_two_layers() -> None:
    factors = depth_factors(32)
    # e^(l ln2 / 31) - 1: by hand, ln2 / 31 = 0.022359587
    assert [factors[layer] for layer in (0, 1, 16, 31)] == pytest.approx([0, 0.02261144, 0.43011246, 1])
    assert factors == sorted(factors)


def test_time_factor() -> None:
    assert [time_factor(step, 4) for step in range(4)] == pytest.approx([0, 0.25992105, 0.58740105, 1])
    assert time_factor(32, 32) == pytest.approx(1)  # resumed beyond the end
    assert time_factor(0, 1) == 0


# The decisions


def test_expected_share_of_skips() -> None:
    """Over many samples, each layer skips p(l) of them, and all layers the mean of p(l)."""
    probabilities = [0.2 * factor for factor in depth_factors(24)]
    skips = draw_skips(probabilities, range(20_000), seed=1, step=0)
    assert not skips[:, 0].any()
    spread = [4 * math.sqrt(p * (1 - p) / 20_000) for p in probabilities]
    assert all(abs(share - p) <= s for share, p, s in zip(skips.mean(0), probabilities, spread, strict=True))
    assert skips.mean() == pytest.approx(sum(probabilities) / 24, abs=0.002)


def test_layers_and_samples_are_independent() -> None:
    skips = draw_skips([0.5, 0.5], range(20_000), seed=1, step=0).astype(float)
    assert abs(np.corrcoef(skips[:, 0], skips[:, 1])[0, 1]) < 0.03
    assert abs(np.corrcoef(skips[1:, 0], skips[:-1, 0])[0, 1]) < 0.03


def test_decisions_belong_to_the_position_in_the_whole_batch() -> None:
    """Ranks and accumulated parts draw together what one rank would draw alone."""
    whole = draw_skips([0.3] * NUM_LAYERS, range(8), seed=5, step=7)
    parts = [draw_skips([0.3] * NUM_LAYERS, range(begin, begin + 2), 5, 7) for begin in range(0, 8, 2)]
    assert np.array_equal(np.concatenate(parts), whole)
    for other in (draw_skips([0.3] * NUM_LAYERS, range(8), 5, 8), draw_skips([0.3] * NUM_LAYERS, range(8), 6, 7)):
        assert not np.array_equal(other, whole)


# What a forward does


def skipping(*layers_of_each: tuple[int, ...]) -> Any:
    """(B, L): which layers each sample skips."""
    return np.array([[layer in skipped for layer in range(NUM_LAYERS)] for skipped in layers_of_each])


def plan_without(*skipped: int) -> DepthPlan:
    return DepthPlan.of_layers([layer for layer in range(NUM_LAYERS) if layer not in skipped], NUM_LAYERS)


def forward(model: Any, ids: Tensor, skips: Any, **inputs: Any) -> Tensor:
    dropout = LayerDropout()
    dropout.skips = skips
    with wrap_layers(model, dropout):
        logits: Tensor = model(ids, use_cache=False, **inputs).logits
    return logits


def test_each_sample_runs_its_own_layers(family_name: str, tiny_model: Any, token_ids: Any) -> None:
    """As if each sample alone had run the plan without the layers that it skips; also with padding on the left."""
    model, ids = tiny_model(family_name).train(), token_ids(4, 12)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    skipped = [(), (1, 5), (4, 5), (2, 5)]
    logits = forward(model, ids, skipping(*skipped), attention_mask=mask)
    for row, layers in enumerate(skipped):
        if layers:
            apply(model, plan_without(*layers))
        alone = model(ids[row : row + 1], attention_mask=mask[row : row + 1], use_cache=False).logits
        restore(model)
        seen = mask[row].bool()
        torch.testing.assert_close(logits[row, seen], alone[0, seen], rtol=1e-4, atol=1e-5)


def test_positions_of_each_sample(tiny_model: Any, token_ids: Any) -> None:
    """Position ids, and with them the rotary embeddings, go with the samples that stay."""
    model, ids = tiny_model("llama").train(), token_ids(3, 8)
    positions = torch.stack([torch.arange(8), torch.arange(8) * 2, torch.arange(8) + 5])
    logits = forward(model, ids, skipping((), (3,), ()), position_ids=positions)
    apply(model, plan_without(3))
    alone = model(ids[1:2], position_ids=positions[1:2], use_cache=False).logits
    torch.testing.assert_close(logits[1:2], alone)


def test_nothing_is_left_out_in_evaluation(tiny_model: Any, token_ids: Any) -> None:
    model, ids = tiny_model("llama"), token_ids(2, 8)
    assert torch.equal(forward(model, ids, skipping((1,), (2,))), model(ids).logits)


def test_skipped_samples_cost_nothing(tiny_model: Any, token_ids: Any) -> None:
    """Forward and backward: a layer costs its share of the samples that stay; none stays: no FLOP."""
    model, ids = tiny_model("llama").train(), token_ids(4, 16)

    def flops(skips: Any) -> int:
        model.zero_grad()
        with FlopCounterMode(display=False) as counter:
            forward(model, ids, skips).sum().backward()
        return int(counter.get_total_flops())

    nothing, everything = flops(None), flops(skipping(*[tuple(range(NUM_LAYERS))] * 4))
    layer = (nothing - everything) / NUM_LAYERS
    skips = skipping((), (1, 5), (5,), (2, 3, 4, 5))
    assert flops(skips) == pytest.approx(nothing - layer * skips.sum() / 4)
    assert everything == flops_of_the_head(model, ids)


def flops_of_the_head(model: Any, ids: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        hidden = model.model.embed_tokens(ids)
        model.lm_head(model.model.norm(hidden)).sum().backward()
        rotary = model.model.rotary_emb(hidden, torch.arange(ids.shape[1])[None])
        assert rotary is not None
    return int(counter.get_total_flops())


def test_a_layer_that_no_sample_runs_has_gradients_of_zero(tiny_model: Any, token_ids: Any) -> None:
    """Distributed data parallelism waits for a gradient of every parameter, and so do its other ranks."""
    model, ids = tiny_model("llama").train(), token_ids(2, 8)
    called: list[int] = []
    for index, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda *_, index=index: called.append(index))
    forward(model, ids, skipping((4,), (4,))).sum().backward()
    gradients = {index: [p.grad for p in layer.parameters()] for index, layer in enumerate(model.model.layers)}
    assert all(gradient is not None and not gradient.any() for gradient in gradients[4])
    assert all(gradient.any() for gradient in gradients[3])
    assert called == list(range(NUM_LAYERS))  # sharding gathers parameters in hooks


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`")
def test_gradient_checkpointing_runs_the_same_layers_again(reentrant: bool, tiny_model: Any, token_ids: Any) -> None:
    model, ids = tiny_model("llama").train(), token_ids(3, 8)
    skips = skipping((1, 4), (4,), (2, 4))

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        dropout = LayerDropout()
        dropout.skips = skips
        with wrap_layers(model, dropout):
            model(ids, use_cache=False).logits.square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    expected = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    rows: list[int] = []
    model.model.layers[1].self_attn.register_forward_hook(lambda *given: rows.append(given[2][0].shape[0]))
    found = gradients()
    assert rows == [2, 2]
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


def test_the_model_is_as_before(tiny_model: Any, token_ids: Any) -> None:
    model, ids = tiny_model("llama").train(), token_ids(2, 8)
    kinds, names = [type(layer) for layer in model.model.layers], list(model.state_dict())
    expected = model(ids).logits
    dropout, second = LayerDropout(), LayerDropout()
    dropout.skips = skipping((1,), (2,))
    with wrap_layers(model, dropout), wrap_layers(model, second):
        assert list(model.state_dict()) == names
        assert type(model.model.layers[0]).__name__ == "LlamaDecoderLayer"
        assert isinstance(model.model.layers[0], kinds[0])
    assert [type(layer) for layer in model.model.layers] == kinds
    assert torch.equal(model(ids).logits, expected)


def test_refusals(tiny_model: Any, token_ids: Any) -> None:
    model, ids = tiny_model("llama").train(), token_ids(2, 8)
    dropout = LayerDropout()
    dropout.skips = skipping((1,), (2,))
    with wrap_layers(model, dropout), pytest.raises(UnsupportedModelError, match="use_cache=False"):
        model(ids, past_key_values=DynamicCache(), use_cache=True)
    apply(model, plan_without(3))
    with pytest.raises(PlanError, match="restore it first"), wrap_layers(model, dropout):
        pass
