"""`apply` is undone without a trace, refuses what it cannot do, and leaves everything else as it was."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, DynamicCache, GPT2Config, GPT2LMHeadModel

from truedepth.errors import PlanError, UnsupportedModelError
from truedepth.families import all_families
from truedepth.models.rewire import applied_plan, apply, restore
from truedepth.plan import DepthPlan, Stage

NUM_LAYERS = 6


def plan_of(notation: str, prefill: Any = "plan", form: Any = "lp", num_layers: int = NUM_LAYERS) -> DepthPlan:
    return DepthPlan.parse(notation, num_layers, form, prefill)


def traces_of(model: Any) -> dict[str, Any]:
    """All that `apply` could leave behind: classes, attributes, weights."""
    return {
        "classes": [type(module) for module in model.modules()],
        "attributes": [set(vars(module)) for module in model.modules()],
        "state": {key: tensor.clone() for key, tensor in model.state_dict().items()},
        "parameters": [id(parameter) for parameter in model.parameters()],
    }


def assert_unchanged(model: Any, before: dict[str, Any]) -> None:
    after = traces_of(model)
    for key in ("classes", "attributes", "parameters"):
        assert after[key] == before[key]
    assert list(after["state"]) == list(before["state"])
    assert all(torch.equal(after["state"][key], tensor) for key, tensor in before["state"].items())


# Restoring


@pytest.mark.parametrize("notation", ["1-5", "0 (1|2|3) 5", "5 (0|3) 1", "(0+1) 2 (3+4+5)"])
@torch.inference_mode()
def test_restore_is_exact(family_name: str, notation: str, tiny_model: Any, token_ids: Any) -> None:
    model, ids = tiny_model(family_name), token_ids(2, 12)
    if "+" in notation and family_name in ("mixtral", "qwen3_moe"):
        return  # refused, see below
    logits, before = model(ids).logits, traces_of(model)
    apply(model, plan_of(notation))
    assert not torch.equal(model(ids).logits, logits)
    assert restore(model) is model
    assert applied_plan(model) is None
    assert_unchanged(model, before)
    assert torch.equal(model(ids).logits, logits)


@torch.inference_mode()
def test_applying_again_replaces_the_plan(tiny_model: Any, token_ids: Any) -> None:
    model, ids = tiny_model("llama"), token_ids(2, 12)
    before = traces_of(model)
    expected = apply(tiny_model("llama"), plan_of("0 (1+2) 4")).forward(ids).logits
    for notation in ("(0+3) 1", "(0|3) 1", "0 (1+2) 4"):
        assert apply(model, plan_of(notation)) is model
        assert applied_plan(model) == plan_of(notation)
    assert torch.equal(model(ids).logits, expected)
    assert_unchanged(restore(model), before)


def test_restore_of_a_model_without_a_plan_does_nothing(tiny_model: Any) -> None:
    model = tiny_model("llama")
    before = traces_of(model)
    assert_unchanged(restore(restore(model)), before)
    assert applied_plan(model) is None


@torch.inference_mode()
def test_forward_that_fails_changes_nothing(tiny_model: Any, token_ids: Any) -> None:
    model, ids = tiny_model("gemma3"), token_ids(2, 12)
    logits, before = model(ids).logits, traces_of(model)
    under_plan = apply(model, plan_of("0 (1|2) 4"))(ids).logits
    handle = model.model.layers[4].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(ids)
    handle.remove()
    assert torch.equal(model(ids).logits, under_plan)
    assert_unchanged(restore(model), before)
    assert torch.equal(model(ids).logits, logits)


@pytest.mark.parametrize("notation", ["0-2", "0-6"])
def test_apply_that_fails_keeps_the_plan_before(notation: str, tiny_model: Any) -> None:
    model = apply(tiny_model("llama"), plan_of("(0+1) 3"))
    before = traces_of(model)
    with pytest.raises(PlanError):
        apply(model, plan_of(notation, num_layers=7))
    assert applied_plan(model) == plan_of("(0+1) 3")
    assert_unchanged(model, before)


def test_training_outlives_the_plan(tiny_model: Any, token_ids: Any) -> None:
    """What is trained under a plan stays after `restore`; only merged layers get their own weights back."""
    model, ids = tiny_model("llama"), token_ids(2, 12)
    before = copy.deepcopy(model.state_dict())
    apply(model, plan_of("0 (1+2) 4"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    restore(model)
    changed = {
        layer
        for layer in range(NUM_LAYERS)
        for key, tensor in model.model.layers[layer].state_dict().items()
        if not torch.equal(tensor, before[f"model.layers.{layer}.{key}"])
    }
    assert changed == {0, 4}


@torch.inference_mode()
def test_a_plan_holds_on_to_nothing_of_a_forward(tiny_model: Any, token_ids: Any) -> None:
    """Masks of long prompts are large."""
    model = apply(tiny_model("gemma3"), plan_of("(0|2) 4"))  # layer 0 borrows the mask that layer 4 has too
    masks: list[Any] = []
    model.model.layers[4].register_forward_pre_hook(
        lambda _, __, inputs: masks.append(weakref.ref(inputs["attention_mask"])), with_kwargs=True
    )
    model(token_ids(2, 12), attention_mask=torch.tensor([[0] * 3 + [1] * 9, [1] * 12]))
    gc.collect()
    assert len(masks) == 1
    assert masks[0]() is None


# Copies and files


@torch.inference_mode()
def test_copy_of_an_applied_model_is_independent(tiny_model: Any, token_ids: Any) -> None:
    model, ids = tiny_model("gemma3"), token_ids(2, 12)
    base = model(ids).logits
    under_plan = apply(model, plan_of("0 (1|2) (3+4)"))(ids).logits
    twin = copy.deepcopy(model)
    assert torch.equal(twin(ids).logits, under_plan)
    assert applied_plan(twin) == applied_plan(model)
    assert torch.equal(restore(twin)(ids).logits, base)
    assert torch.equal(model(ids).logits, under_plan)
    for parameter in twin.parameters():
        parameter.zero_()
    assert torch.equal(model(ids).logits, under_plan)
    assert torch.equal(restore(model)(ids).logits, base)


@pytest.mark.parametrize("notation", ["1-5", "0 (1|2|3) 5"])
@torch.inference_mode()
def test_saved_model_is_the_unmodified_one(
    family_name: str, notation: str, tiny_model: Any, token_ids: Any, tmp_path: Any
) -> None:
    model, ids = tiny_model(family_name), token_ids(2, 12)
    base, keys = model(ids).logits, list(model.state_dict())
    model.save_pretrained(tmp_path / "unmodified")
    apply(model, plan_of(notation))
    assert list(model.state_dict()) == keys
    model.save_pretrained(tmp_path / "applied")
    for file in (tmp_path / "unmodified").iterdir():
        assert (tmp_path / "applied" / file.name).read_bytes() == file.read_bytes()
    implementation = model.config._attn_implementation
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "applied", attn_implementation=implementation)
    assert torch.equal(loaded(ids).logits, base)


@torch.inference_mode()
def test_saved_model_with_merged_layers_has_the_mean_in_the_first(tiny_model: Any, tmp_path: Any) -> None:
    model = tiny_model("qwen2")
    before = copy.deepcopy(model.state_dict())
    apply(model, plan_of("0 (2+3)")).save_pretrained(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    for key, tensor in before.items():
        if key.startswith("model.layers.2."):
            torch.testing.assert_close(saved[key], (tensor + before[key.replace("layers.2.", "layers.3.")]) / 2)
        else:
            assert torch.equal(saved[key], tensor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_mean_of_merged_weights_is_as_exact_as_the_model(dtype: torch.dtype, tiny_model: Any) -> None:
    model = tiny_model("llama").to(dtype)
    weights = [layer.mlp.up_proj.weight.detach().clone() for layer in model.model.layers]
    apply(model, plan_of("0 (1+3+4)"))
    mean = (weights[1].double() + weights[3].double() + weights[4].double()) / 3
    torch.testing.assert_close(
        model.model.layers[1].mlp.up_proj.weight.detach(), mean.to(dtype), rtol=0, atol=torch.finfo(dtype).eps
    )


# Refusals


def test_unknown_model_type_is_refused_with_those_supported() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=16))
    with pytest.raises(UnsupportedModelError, match="'gpt2' is not supported") as refusal:
        apply(model, plan_of("0", num_layers=2))
    for family in all_families():
        assert all(model_type in str(refusal.value) for model_type in family.model_types)


def test_model_without_its_head_is_refused(tiny_model: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="LlamaModel is not a causal language model"):
        apply(AutoModel.from_config(tiny_model("llama").config), plan_of("0-2"))


def test_module_that_is_no_transformers_model_is_refused(tiny_model: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="a Sequential is not a transformers model"):
        apply(nn.Sequential(tiny_model("llama")), plan_of("0-2"))


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_merge_of_experts_is_refused(name: str, tiny_model: Any) -> None:
    model = tiny_model(name)
    before = traces_of(model)
    with pytest.raises(UnsupportedModelError, match=rf"family {name} cannot do 'merge'.*: .*llama"):
        apply(model, plan_of("0 (1+2) 3"))
    assert_unchanged(model, before)


def test_plan_for_another_depth_is_refused(tiny_model: Any) -> None:
    with pytest.raises(PlanError, match="the plan '0-4' is for 5 layers, but the model has 6"):
        apply(tiny_model("llama"), plan_of("0-4", num_layers=5))


def test_merge_of_quantized_layers_is_refused(tiny_model: Any) -> None:
    model = tiny_model("llama")
    model.hf_quantizer = object()  # as transformers marks a model that it has quantized
    with pytest.raises(UnsupportedModelError, match=r"stage '\(1\+2\)'.*quantized"):
        apply(model, plan_of("0 (1+2) 3"))
    apply(model, plan_of("0 (1|2) 3"))


# Any plan


@st.composite
def plans(draw: st.DrawFn) -> DepthPlan:
    order = draw(st.permutations(range(NUM_LAYERS)))
    left = list(order[: draw(st.integers(1, NUM_LAYERS))])
    form, prefill = draw(st.sampled_from(["lp", "par"])), draw(st.sampled_from(["plan", "full"]))
    stages = []
    while left:
        size = min(draw(st.integers(1, 3)), len(left))
        merged = prefill == "plan" and size > 1 and draw(st.booleans())
        stages.append(Stage(tuple(left[:size]), merged))
        left = left[size:]
    return DepthPlan(tuple(stages), NUM_LAYERS, form, prefill)


@settings(max_examples=25, deadline=None)
@given(plan=plans(), prompt=st.integers(1, 10), chunk=st.integers(1, 5))
def test_any_plan_decodes_and_restores(
    plan: DepthPlan, prompt: int, chunk: int, tiny_model: Any, token_ids: Any
) -> None:
    """Cached equals uncached, whole equals in pieces, and nothing stays behind."""
    model, ids = tiny_model("llama"), token_ids(2, 16)
    before = traces_of(model)
    with torch.inference_mode():
        base = model(ids).logits
        apply(model, plan)
        caches = [DynamicCache(config=model.config) for _ in range(2)]
        prompts = [model(ids[:, :prompt], past_key_values=cache).logits for cache in caches]
        by_token = [model(step, past_key_values=caches[0]).logits for step in ids[:, prompt:].split(1, 1)]
        first, rest = ids[:, prompt : prompt + 1], ids[:, prompt + 1 :].split(chunk, 1)
        in_chunks = [model(step, past_key_values=caches[1]).logits for step in (first, *rest)]
        torch.testing.assert_close(torch.cat(by_token, 1), torch.cat(in_chunks, 1), rtol=0, atol=1e-5)
        uncached = model(ids, use_cache=False).logits
        if plan.prefill == "full":
            torch.testing.assert_close(uncached, base, rtol=0, atol=0)
            torch.testing.assert_close(prompts[0], base[:, :prompt], rtol=0, atol=1e-5)
        else:
            torch.testing.assert_close(torch.cat([prompts[0], *by_token], 1), uncached, rtol=0, atol=1e-5)
        restore(model)
        assert torch.equal(model(ids).logits, base)
    assert_unchanged(model, before)
