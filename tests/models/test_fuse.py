"""Fused against grouped: the wide layers of a plan, put into the family's own model, compute what the plan does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from truedepth.errors import PlanError, UnsupportedModelError
from truedepth.families import family_of
from truedepth.models.fuse import WideLayer, fused_layers, require_fusable, stage_facts
from truedepth.models.rewire import apply
from truedepth.plan import DepthPlan

NUM_LAYERS = 6
FUSABLE = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "phi3")
PLANS = (
    "0 (1|3) (4|5)",  # layer 2 is skipped; smollm3 has no rotary embedding in layers 2 and 5
    "0 1 (3|4)",
    "(0|1|3) 4 5",
    "(0+1) (3|4)",
    "2 (4|0) 5",
)
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    *((name, {}) for name in FUSABLE),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"num_key_value_heads": 1}),
    ("llama", {"num_key_value_heads": 4, "head_dim": 12}),
    ("qwen3", {"attention_bias": True}),
    ("smollm3", {"attention_bias": True, "mlp_bias": True}),
)


def read_from(model: Any) -> Callable[[str], torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}.__getitem__


def widened(model: Any, plan: DepthPlan) -> Any:
    """The model with its layers replaced by those of the plan, each of the family's own class."""
    config, family = model.config, family_of(model.config)
    wide = copy.deepcopy(model)
    facts = stage_facts(config, family, plan)
    for name, value in facts.items():
        setattr(wide.config, name, value)
    wide.model.layers = nn.ModuleList(
        _layer(wide, index, fused) for index, fused in enumerate(fused_layers(read_from(model), config, family, plan))
    )
    return wide


def _layer(wide: Any, index: int, fused: WideLayer) -> nn.Module:
    config = copy.copy(wide.config)
    config.num_attention_heads, config.num_key_value_heads = fused.heads, fused.kv_heads
    config.intermediate_size = fused.intermediate
    config.head_dim = getattr(config, "head_dim", None) or config.hidden_size // wide.config.num_attention_heads
    layer: nn.Module = type(wide.model.layers[0])(config, index)
    for name, tensor in fused.tensors.items():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            layer.get_parameter(name).data = torch.empty_like(tensor)
    layer.load_state_dict(fused.tensors)
    return layer.eval()


@pytest.mark.parametrize("notation", PLANS)
@pytest.mark.parametrize(("name", "overrides"), VARIANTS)
def test_fused_equals_grouped(
    name: str, overrides: dict[str, Any], notation: str, tiny_model: Any, token_ids: Any
) -> None:
    model = tiny_model(name, **overrides)
    plan = DepthPlan.parse(notation, NUM_LAYERS)
    ids = token_ids(2, 20)
    if name == "smollm3" and "(4|5)" in notation:
        plan = DepthPlan.parse("0 (1|3) 4 5", NUM_LAYERS)
    with torch.no_grad():
        fused = widened(model, plan)(ids).logits
        grouped = apply(model, plan)(ids).logits
    torch.testing.assert_close(fused, grouped, atol=1e-5, rtol=1e-4)


def test_single_layers_are_the_source_s_own(tiny_model: Any) -> None:
    model = tiny_model("qwen3")
    plan = DepthPlan.parse("3 (0|1) 5", NUM_LAYERS)
    read = read_from(model)
    single, group, _ = fused_layers(read, model.config, family_of(model.config), plan)
    for name, tensor in single.tensors.items():
        assert tensor is read(f"model.layers.3.{name}")
    assert (single.heads, single.kv_heads, single.intermediate) == (4, 2, 48)
    assert (group.layers, group.heads, group.kv_heads, group.intermediate) == ((0, 1), 8, 4, 96)
    assert torch.all(group.tensors["input_layernorm.weight"] == 1)
    assert group.tensors["self_attn.q_norm.weight"].shape == (8, 8)


def test_reads_one_stage_at_a_time(tiny_model: Any) -> None:
    model = tiny_model("llama")
    read, asked = read_from(model), []

    def counting(name: str) -> torch.Tensor:
        asked.append(int(name.split(".")[2]))
        return read(name)

    stages = fused_layers(counting, model.config, family_of(model.config), DepthPlan.parse("0 (1|2) 4", NUM_LAYERS))
    next(stages)
    assert set(asked) == {0}
    next(stages)
    assert set(asked) == {0, 1, 2}


@pytest.mark.parametrize(
    ("name", "notation", "others", "error", "message"),
    [
        ("llama", "0 (1|2)", {"form": "par"}, PlanError, "form par"),
        ("llama", "0 1", {"prefill": "full"}, PlanError, "for the prompt"),
        ("gemma2", "(0|2)", {}, UnsupportedModelError, "gemma2 cannot do 'fuse'"),
        ("olmo2", "(0|2)", {}, UnsupportedModelError, "olmo2 cannot do 'fuse'"),
        ("mixtral", "(0|2)", {}, UnsupportedModelError, "mixtral cannot do 'fuse'"),
        ("mixtral", "(0+2)", {}, UnsupportedModelError, "mixtral cannot do 'merge'"),
        ("smollm3", "(1|2)", {}, UnsupportedModelError, "differ in no_rope_layers"),
    ],
)
def test_what_is_refused(
    name: str, notation: str, others: dict[str, Any], error: type[Exception], message: str, tiny_model: Any
) -> None:
    config = tiny_model(name).config
    plan = DepthPlan.parse(notation, NUM_LAYERS, **others)
    with pytest.raises(error, match=message):
        require_fusable(config, family_of(config), plan)


def test_a_full_plan_of_form_par_is_fine(tiny_model: Any) -> None:
    config = tiny_model("llama").config
    require_fusable(config, family_of(config), DepthPlan.full(NUM_LAYERS).with_form("par"))
