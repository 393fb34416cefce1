"""Losses, gradients and hidden states under a plan, and what compilers and hooks see of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import StaticCache

from truedepth.models.rewire import apply, restore
from truedepth.plan import DepthPlan

NUM_LAYERS = 6


def plan_of(notation: str, form: Any = "lp", prefill: Any = "plan", num_layers: int = NUM_LAYERS) -> DepthPlan:
    return DepthPlan.parse(notation, num_layers, form, prefill)


def gradients(model: Any) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found


def assert_same_gradients(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, gradient in first.items():
        torch.testing.assert_close(gradient, second[name], rtol=1e-4, atol=1e-6, msg=name)


# Loss and gradients


@pytest.mark.parametrize(("notation", "form"), [("1 3-5", "lp"), ("(1|2|3) 5", "lp"), ("(1|2) (5|3)", "par")])
def test_loss_and_gradients(family_name: str, notation: str, form: Any, tiny_model: Any, token_ids: Any) -> None:
    """labels= gives the mean cross-entropy; every used layer learns from it, and no skipped one."""
    model, ids = tiny_model(family_name), token_ids(2, 12)
    plan = plan_of(notation, form)
    apply(model, plan)
    labels = ids.clone()
    labels[0, :5] = -100
    output = model(ids, labels=labels)
    expected = cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)

    output.loss.backward()
    learning = {int(name.split(".")[2]) for name in gradients(model) if ".layers." in name}
    assert learning == set(plan.layers_used)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(("notation", "form"), [("1 3 5", "lp"), ("0 (1|2|3) 5", "par"), ("5 (0|2) (4+3)", "lp")])
@pytest.mark.parametrize("name", ["llama", "phi3", "gemma3"])
def test_gradient_checkpointing(
    name: str, notation: str, form: Any, reentrant: bool, tiny_model: Any, token_ids: Any
) -> None:
    """Same gradients, and each stage is really computed again in the backward pass."""
    model, ids = tiny_model(name).train(), token_ids(2, 12)
    plan = plan_of(notation, form)
    apply(model, plan)
    model(ids, labels=ids).loss.backward()
    expected = gradients(model)

    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    runs: list[int] = []
    for layer in plan.layers_used:
        model.model.layers[layer].self_attn.register_forward_hook(lambda *_, layer=layer: runs.append(layer))
    model(ids, labels=ids).loss.backward()
    assert_same_gradients(gradients(model), expected)
    attentions = [stage.layers[0] if stage.merged else layer for stage in plan.stages for layer in stage.layers]
    assert sorted({*attentions}) == sorted({*runs})
    assert len(runs) == 2 * len({*runs})


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`")
def test_gradient_checkpointing_over_several_forwards(tiny_model: Any, token_ids: Any) -> None:
    """What a group over two attention types borrows belongs to its forward (preference training has two)."""
    model, ids = tiny_model("gemma3").train(), token_ids(2, 12)
    mask = torch.tensor([[0] * 8 + [1] * 4, [1] * 12])
    apply(model, plan_of("(0|2) 4"))

    def trained() -> dict[str, Tensor]:
        losses = [model(ids, labels=ids).loss, model(ids, attention_mask=mask, labels=ids).loss]
        sum(losses).backward()  # type: ignore[union-attr]
        return gradients(model)

    expected = trained()
    model.gradient_checkpointing_enable()
    assert_same_gradients(trained(), expected)


def test_dropout_differs_between_the_members_of_a_group(tiny_model: Any, token_ids: Any) -> None:
    """Phi-3 has dropout on its branches; two forwards agree where the seed does."""
    model, ids = tiny_model("phi3", resid_pdrop=0.3).train(), token_ids(1, 8)
    apply(model, plan_of("0 (1|2) 5"))
    torch.manual_seed(0)
    first = model(ids).logits
    second = model(ids).logits
    torch.manual_seed(0)
    assert torch.equal(model(ids).logits, first)
    assert not torch.equal(second, first)


def test_losses_of_the_router_count_the_layers_that_ran(tiny_model: Any, token_ids: Any) -> None:
    model, ids = tiny_model("qwen3_moe"), token_ids(2, 12)
    output = apply(model, plan_of("0 (1|3) 5"))(ids, labels=ids, output_router_logits=True)
    assert len(output.router_logits) == 4
    assert torch.isfinite(output.aux_loss)


# Hidden states, hooks


@pytest.mark.parametrize(
    ("notation", "form"), [("1-5", "lp"), ("0 (1|2) (3|4) 5", "par"), ("5 0 (1|2)", "lp"), ("(0+1) 2 5", "lp")]
)
@pytest.mark.parametrize("name", ["llama", "gemma2"])
@torch.inference_mode()
def test_hidden_states_are_one_a_stage(name: str, notation: str, form: Any, tiny_model: Any, token_ids: Any) -> None:
    model, ids = tiny_model(name), token_ids(2, 12)
    plan = plan_of(notation, form)
    output = apply(model, plan)(ids, output_hidden_states=True)
    assert len(output.hidden_states) == plan.effective_depth + 1
    # Each is the output of the stages so far: a plan cut off after k stages ends in the k-th.
    for depth in range(1, plan.effective_depth):
        shorter = DepthPlan(plan.stages[:depth], NUM_LAYERS, plan.form)
        last = apply(model, shorter)(ids, output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(model.model.norm(output.hidden_states[depth]), last)


@torch.inference_mode()
def test_hidden_states_asked_for_before_and_after(tiny_model: Any, token_ids: Any) -> None:
    """transformers puts its hooks on the layers at the first request; they see the plan all the same."""
    model, ids = tiny_model("llama"), token_ids(2, 12)
    before = model(ids, output_hidden_states=True).hidden_states
    assert len(apply(model, plan_of("2 (3|4)"))(ids, output_hidden_states=True).hidden_states) == 3
    after = restore(model)(ids, output_hidden_states=True).hidden_states
    assert len(after) == NUM_LAYERS + 1
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


@pytest.mark.parametrize("notation", ["1 (2|3) 5", "5 3 (0|1)", "(4+5) 2 (0|1)"])
@torch.inference_mode()
def test_a_stage_is_one_call_of_one_of_its_layers(notation: str, tiny_model: Any, token_ids: Any) -> None:
    """User's hooks see layers that run, in the order of the plan, and no others."""
    model, ids = tiny_model("llama"), token_ids(1, 8)
    called: list[int] = []
    for index, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda *_, index=index: called.append(index))
    plan = plan_of(notation)
    apply(model, plan)(ids)
    assert len(called) == plan.effective_depth
    assert all(index in stage.layers for index, stage in zip(called, plan.stages, strict=True))


def test_layer_classes_keep_their_names(tiny_model: Any) -> None:
    """Device maps and sharding policies find decoder layers by class name."""
    model = apply(tiny_model("mistral"), plan_of("0 (1|2) 5"))
    assert {type(layer).__name__ for layer in model.model.layers} == {"MistralDecoderLayer"}
    assert {"MistralDecoderLayer"} == set(model._no_split_modules)


# torch.compile


@pytest.mark.slow
def test_compiled_equals_eager(tiny_model: Any, token_ids: Any) -> None:
    """One graph, without breaks; the same compiled model follows every change of the plan."""
    model, ids = tiny_model("llama", num_hidden_layers=3), token_ids(2, 10)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for notation in ("1 2", "0 (1|2)"):
        apply(compiled, plan_of(notation, num_layers=3))
        expected = model(ids, use_cache=False).logits
        torch.testing.assert_close(compiled(ids, use_cache=False).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@torch.inference_mode()
def test_compiled_decode_step(tiny_model: Any, token_ids: Any) -> None:
    """The usual recipe: an eager prompt, then one graph over a static cache for the steps."""
    model, ids = tiny_model("llama", num_hidden_layers=3), token_ids(1, 10)
    apply(model, plan_of("(1|2)", prefill="full", num_layers=3))
    step = torch.compile(model, backend="eager", fullgraph=True)

    def decode(forward: nn.Module) -> Tensor:
        cache = StaticCache(config=model.config, max_cache_len=16)
        model(ids[:, :7], past_key_values=cache)
        return torch.cat([forward(token, past_key_values=cache).logits for token in ids[:, 7:].split(1, 1)], 1)

    torch.testing.assert_close(decode(step), decode(model), rtol=0, atol=1e-5)
