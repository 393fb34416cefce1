"""`apply` against the equations, written out here without the library: every family, every method.

Masks, rotary embeddings and the order of norms are this file's own; only a layer's attention, FFN and norm modules
are the model's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from truedepth.errors import UnsupportedModelError
from truedepth.methods import all_methods
from truedepth.methods.base import LayerMethod
from truedepth.models.rewire import applied_plan, apply
from truedepth.plan import DepthPlan, Stage

NUM_LAYERS = 6
TOLERANCE = 1e-5

PLANS = [
    ("1-5", "lp"),  # without the first layer
    ("0 2 4", "lp"),
    ("0 (1|2) (3|4) 5", "lp"),
    ("0 (1|2|3) 5", "par"),
    ("(2|0) (5|1) 3", "par"),  # groups over both attention types of Gemma 2 and 3
    ("5 3 0 (1|4)", "lp"),  # another order
    ("(3|4|5) 1", "lp"),
    ("0 (1+2+4) 3 5", "lp"),  # merged
]

SLIDING = {"mistral": (12, range(6)), "gemma2": (8, (0, 2, 4)), "gemma3": (8, (0, 1, 3, 4))}
"""Window, and the layers that have it."""


class Reference:
    """A tiny model run by the equations of a plan: x -> [for each stage] -> logits.

    Keys and values are kept in a cache that never forgets; windows are in the masks alone.
    """

    def __init__(self, model: Any, name: str) -> None:
        self.model, self.name = model, name
        self.layers = list(model.model.layers)
        self.cache = DynamicCache()
        self.seen = torch.zeros(0, 0, dtype=torch.bool)

    def __call__(self, plan: DepthPlan, ids: Tensor, padding: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of the next tokens `ids` (B, T); `padding` (B, T) is False where a token is none."""
        batch, length = ids.shape
        real = torch.ones(batch, length, dtype=torch.bool) if padding is None else padding
        past = self.seen.shape[1]
        self.seen = torch.cat([self.seen.reshape(batch, past), real], 1)
        at = torch.arange(past, past + length)
        x = self.embed(ids)
        for stage in plan.stages:
            x = self.run(stage, plan.form, x, at)
        logits = self.model.lm_head(self.model.model.norm(x))
        return 30.0 * torch.tanh(logits / 30.0) if self.name == "gemma2" else logits

    def embed(self, ids: Tensor) -> Tensor:
        x = self.model.model.embed_tokens.weight[ids]
        return x * x.shape[-1] ** 0.5 if self.name.startswith("gemma") else x

    def run(self, stage: Stage, form: str, x: Tensor, at: Tensor) -> Tensor:
        if stage.merged:
            x = x + self.attention(stage.layers[0], x, at, self.mean(stage))
            return x + self.ffn(stage.layers[0], x, self.mean(stage))
        if form == "lp" or len(stage.layers) == 1:
            u = x + sum(self.attention(i, x, at) for i in stage.layers)
            return u + sum(self.ffn(i, u) for i in stage.layers)
        attended = {i: self.attention(i, x, at) for i in stage.layers}
        return x + sum(a + self.ffn(i, x + a) for i, a in attended.items())

    def mean(self, stage: Stage) -> Any:
        merged = copy.deepcopy(self.layers[stage.layers[0]])
        states = [self.layers[i].state_dict() for i in stage.layers]
        merged.load_state_dict({key: sum(state[key] for state in states) / len(states) for key in states[0]})
        return merged

    def attention(self, i: int, x: Tensor, at: Tensor, layer: Any = None) -> Tensor:
        layer = layer or self.layers[i]

        def attend(h: Tensor) -> Tensor:
            return layer.self_attn(
                hidden_states=h,
                position_embeddings=self.rotary(i, at),
                attention_mask=self.mask(i, at),
                past_key_values=self.cache,
            )[0]

        if self.name == "olmo2":
            return layer.post_attention_layernorm(attend(x))
        if self.name.startswith("gemma"):
            return layer.post_attention_layernorm(attend(layer.input_layernorm(x)))
        return attend(layer.input_layernorm(x))

    def ffn(self, i: int, x: Tensor, layer: Any = None) -> Tensor:
        layer = layer or self.layers[i]
        if self.name == "olmo2":
            return layer.post_feedforward_layernorm(layer.mlp(x))
        if self.name.startswith("gemma"):
            return layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(x)))
        return layer.mlp(layer.post_attention_layernorm(x))

    def mask(self, i: int, at: Tensor) -> Tensor:
        """0 where query may see key, else very negative: (B, 1, T, S)."""
        keys = torch.arange(self.seen.shape[1])
        window, layers = SLIDING.get(self.name, (0, ()))
        distance = at[:, None] - keys[None, :]  # (T, S)
        sees = (distance >= 0) & (distance < window) if i in layers else distance >= 0
        sees = sees[None] & self.seen[:, None, :]
        return torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)[:, None]

    def rotary(self, i: int, at: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, (1, T, head_dim)."""
        config = self.model.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        rope = config.rope_parameters
        if self.name == "gemma3":
            rope = rope["sliding_attention" if i in SLIDING["gemma3"][1] else "full_attention"]
        frequencies = rope["rope_theta"] ** (-torch.arange(0, head_dim, 2).float() / head_dim)
        angles = (at[:, None].float() * frequencies).repeat(1, 2)[None]
        return angles.cos(), angles.sin()


class SyntheticEvidence:
    """Numbers of a model that does not exist, for methods that look at one."""

    num_layers = NUM_LAYERS

    def block_influence(self) -> Sequence[float]:
        return [0.9, 0.2, 0.4, 0.1, 0.3, 0.8]

    def angular_distance(self, block: int) -> Sequence[float]:
        return [0.5 - 0.1 * (start == 2) for start in range(self.num_layers - block + 1)]

    def loss(self, plan: DepthPlan) -> float:
        return 2.0 + sum(self.block_influence()[layer] for layer in plan.layers_skipped)

    def losses(self, plans: Sequence[DepthPlan]) -> list[float]:
        return [self.loss(plan) for plan in plans]

    def progress(self, description: str, total: int) -> AbstractContextManager[Callable[[], None]]:
        return nullcontext(lambda: None)


METHODS: dict[str, dict[str, Any]] = {
    "layer-parallel": {"end": 5, "delta": 4},
    "unified-skipping": {"speedup": 2},
    "early-exit": {"exit": 3},
    "block-influence": {"depth": 4},
    "angular-distance": {"depth": 4},
    "greedy-removal": {"depth": 4},
    "shapley": {"depth": 4, "samples": 3},
    "shuffle": {"start": 1, "end": 5, "seed": 3},
    "merge": {"start": 2, "end": 4},
    "prune-range": {"start": 0, "end": 2},
    "parallel-range": {"start": 1, "end": 4, "form": "par"},
}


def plan_of(method: str) -> DepthPlan:
    built = all_methods()[method](**METHODS[method])
    return built.plan(NUM_LAYERS) if isinstance(built, LayerMethod) else built.plan(SyntheticEvidence())  # type: ignore[union-attr]


def is_refused(model: Any, plan: DepthPlan) -> bool:
    """Experts have no mean: such a plan is not run, and said not to be."""
    if model.config.model_type not in ("mixtral", "qwen3_moe") or not any(stage.merged for stage in plan.stages):
        return False
    with pytest.raises(UnsupportedModelError, match="cannot do 'merge'"):
        apply(model, plan)
    return True


def largest_error(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())


@torch.inference_mode()
def test_full_plan_is_the_model(family_name: str, tiny_model: Any, token_ids: Any) -> None:
    """The reference itself is right: with every layer it is what transformers computes."""
    model, ids = tiny_model(family_name), token_ids(2, 20)
    full = DepthPlan.full(NUM_LAYERS)
    reference = Reference(model, family_name)(full, ids)
    assert largest_error(model(ids).logits, reference) <= TOLERANCE
    assert torch.equal(apply(copy.deepcopy(model), full)(ids).logits, model(ids).logits)


@pytest.mark.parametrize(("notation", "form"), PLANS)
@torch.inference_mode()
def test_plan_equals_its_equations(family_name: str, notation: str, form: Any, tiny_model: Any, token_ids: Any) -> None:
    plan = DepthPlan.parse(notation, NUM_LAYERS, form)
    model, ids = tiny_model(family_name), token_ids(2, 20)
    if is_refused(model, plan):
        return
    expected = Reference(copy.deepcopy(model), family_name)(plan, ids)
    apply(model, plan)
    assert largest_error(model(ids).logits, expected) <= TOLERANCE
    assert largest_error(model(ids, use_cache=False).logits, expected) <= TOLERANCE


def test_every_method_is_covered() -> None:
    assert set(METHODS) == {
        name for name, method in all_methods().items() if method.__module__.startswith("truedepth.")
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llama", "gemma3"])
@torch.inference_mode()
def test_method_equals_its_equations(name: str, method: str, tiny_model: Any, token_ids: Any) -> None:
    """Plans of the same shapes run on every family above."""
    plan = plan_of(method)
    assert not plan.is_full
    model, ids = tiny_model(name), token_ids(2, 14, seed=1)
    if plan.prefill == "full":
        check_two_phases(model, name, plan, ids, prompt=9)
        return
    expected = Reference(copy.deepcopy(model), name)(plan, ids)
    assert largest_error(apply(model, plan)(ids).logits, expected) <= TOLERANCE


@pytest.mark.parametrize(
    ("notation", "form", "prompt"),
    [("2 (3|4)", "lp", 10), ("5 (1|2) 3", "par", 10), ("3", "lp", 1)],
)
@torch.inference_mode()
def test_full_prefill_equals_its_equations(
    family_name: str, notation: str, form: Any, prompt: int, tiny_model: Any, token_ids: Any
) -> None:
    plan = DepthPlan.parse(notation, NUM_LAYERS, form, "full")
    check_two_phases(tiny_model(family_name), family_name, plan, token_ids(2, 20), prompt)


def check_two_phases(model: Any, name: str, plan: DepthPlan, ids: Tensor, prompt: int) -> None:
    """Prompt at full depth, then the plan's layers over those caches; and generation does just that."""
    full = DepthPlan.full(NUM_LAYERS)
    two_phases = Reference(copy.deepcopy(model), name)
    expected = [two_phases(full, ids[:, :prompt])]
    expected += [two_phases(plan, ids[:, [at]]) for at in range(prompt, ids.shape[1])]
    greedy = Reference(copy.deepcopy(model), name)
    tokens = [greedy(full, ids[:, :prompt])[:, -1:].argmax(-1)]
    for _ in range(4):
        tokens.append(greedy(plan, tokens[-1]).argmax(-1))

    apply(model, plan)
    cache = DynamicCache(config=model.config)
    steps = [ids[:, :prompt], *ids[:, prompt:].split(1, 1)]
    actual = [model(step, past_key_values=cache).logits for step in steps]
    assert largest_error(torch.cat(actual, 1), torch.cat(expected, 1)) <= TOLERANCE
    model.generation_config.eos_token_id = None
    generated = model.generate(ids[:, :prompt], max_new_tokens=5, do_sample=False)
    assert generated[:, prompt:].tolist() == torch.cat(tokens, 1).tolist()


@pytest.mark.parametrize(("notation", "form"), [("1-5", "lp"), ("5 0 (2|3|4)", "par")])
@torch.inference_mode()
def test_padded_batch_equals_its_equations(
    family_name: str, notation: str, form: Any, tiny_model: Any, token_ids: Any
) -> None:
    plan = DepthPlan.parse(notation, NUM_LAYERS, form)
    model, ids = tiny_model(family_name), token_ids(3, 18)
    mask = torch.ones_like(ids)
    mask[0, :7], mask[1, :13] = 0, 0
    expected = Reference(copy.deepcopy(model), family_name)(plan, ids, mask.bool())
    actual = apply(model, plan)(ids, attention_mask=mask).logits
    assert applied_plan(model) == plan
    assert largest_error(actual[mask.bool()], expected[mask.bool()]) <= TOLERANCE
