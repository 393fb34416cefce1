"""The loss of several exits: equal to the plain computation, and small in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from truedepth.families import family_of
from truedepth.models.rewire import causal_lm
from truedepth.models.stages import to_logits
from truedepth.training.hooks import head_loss
from truedepth.training.hooks.head_loss import SharedHead, next_token_loss, summed_losses
from truedepth.training.layerskip.exit_loss import training_exits

WEIGHTS = {1: 0.1, 3: 0.3, 5: 0.6}


def plain(model: Any, ids: Tensor, labels: Tensor, weights: dict[int, float]) -> tuple[Tensor, dict[int, Tensor]]:
    """The weighted loss and the logits, from all hidden states and all logits."""
    core = causal_lm(model)
    outputs: list[Tensor] = []
    layers = family_of(core.config).decoder_layers(core)
    hooks = [layer.register_forward_hook(lambda *given: outputs.append(given[2])) for layer in layers]
    model(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    logits = {layer: to_logits(core, family_of(core.config), outputs[layer]) for layer in weights}
    losses = {
        layer: cross_entropy(value[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten())
        for layer, value in logits.items()
    }
    return sum((weights[layer] * loss for layer, loss in losses.items()), torch.zeros(())), logits


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor], **tolerance: Any) -> None:
    assert first.keys() == second.keys()
    for name, gradient in first.items():
        torch.testing.assert_close(gradient, second[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def labels_of(ids: Tensor) -> Tensor:
    labels = ids.clone()
    labels[0, :5] = -100
    return labels


@pytest.fixture(params=[1000, 7])
def tokens_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all tokens at once, and in parts that do not divide them."""
    monkeypatch.setattr(head_loss, "LOGITS_AT_ONCE", 64 * request.param)


@pytest.mark.usefixtures("tokens_at_once")
def test_equals_the_plain_computation(family_name: str, tiny_model: Any, token_ids: Any) -> None:
    """Loss, all gradients, each exit's loss and its agreement with the last layer."""
    model, ids = tiny_model(family_name).train(), token_ids(3, 12)
    labels = labels_of(ids)
    expected, logits = plain(model, ids, labels, WEIGHTS)
    wanted = gradients(model, expected)
    with training_exits(model) as objective:
        objective.weights = WEIGHTS
        output = model(ids, labels=labels, use_cache=False, logits_to_keep=1)
        torch.testing.assert_close(output.loss, expected)
        assert_same(gradients(model, output.loss), wanted, rtol=1e-4, atol=1e-6)

    found = objective.found
    assert found.tokens == 2 * 11 + 7
    scored = labels[:, 1:] != -100
    for layer in WEIGHTS:
        chosen = logits[layer][:, :-1].argmax(-1)[scored]
        assert found.agreed[layer] == (chosen == logits[5][:, :-1].argmax(-1)[scored]).sum()
        own = cross_entropy(logits[layer][:, :-1][scored], labels[:, 1:][scored], reduction="sum")
        torch.testing.assert_close(found.losses[layer], own.detach())


def test_upstream_factor_and_given_number_of_items(tiny_model: Any, token_ids: Any) -> None:
    """As gradient accumulation scales losses: a sum over tokens by a number that all parts share."""
    model, ids = tiny_model("llama").train(), token_ids(2, 9)
    expected, _ = plain(model, ids, ids, WEIGHTS)
    wanted = gradients(model, expected * 16 / 40 * 3)
    with training_exits(model) as objective:
        objective.weights = WEIGHTS
        loss = model(ids, labels=ids, use_cache=False, logits_to_keep=1, num_items_in_batch=torch.tensor(40)).loss
        assert_same(gradients(model, loss * 3), wanted, rtol=1e-4, atol=1e-6)


def test_frozen_head_and_tied_head(tiny_model: Any, token_ids: Any) -> None:
    for tied in (False, True):
        model, ids = tiny_model("llama", tie_word_embeddings=tied).train(), token_ids(2, 9)
        if not tied:
            model.lm_head.requires_grad_(False)
        expected, _ = plain(model, ids, ids, WEIGHTS)
        wanted = gradients(model, expected)
        with training_exits(model) as objective:
            objective.weights = WEIGHTS
            loss = model(ids, labels=ids, use_cache=False, logits_to_keep=1).loss
            assert_same(gradients(model, loss), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("tokens_at_once")
def test_autocast(tiny_model: Any, token_ids: Any) -> None:
    """Under bfloat16 autocast the head runs in bfloat16 and the loss in float32, as in the plain computation."""
    model, ids = tiny_model("llama").train(), token_ids(2, 12)
    with torch.autocast("cpu", torch.bfloat16):
        expected, _ = plain(model, ids, ids, WEIGHTS)
    wanted = gradients(model, expected)
    with training_exits(model) as objective:
        objective.weights = WEIGHTS
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(ids, labels=ids, use_cache=False, logits_to_keep=1).loss
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-3)
        for name, gradient in gradients(model, loss).items():
            assert (gradient - wanted[name]).norm() < 0.02 * wanted[name].norm(), name


def test_a_batch_without_labels_to_score(tiny_model: Any, token_ids: Any) -> None:
    """No loss, and gradients of zero rather than none or NaN."""
    model, ids = tiny_model("llama").train(), token_ids(2, 9)
    with training_exits(model) as objective:
        objective.weights = WEIGHTS
        loss = model(ids, labels=torch.full_like(ids, -100), use_cache=False, logits_to_keep=1).loss
        assert loss == 0
        found = gradients(model, loss)
    assert "lm_head.weight" in found
    assert not any(gradient.any() for gradient in found.values())


def test_without_gradients(tiny_model: Any, token_ids: Any) -> None:
    model, ids = tiny_model("llama"), token_ids(2, 9)
    expected, _ = plain(model, ids, ids, WEIGHTS)
    with training_exits(model) as objective, torch.no_grad():
        objective.weights = WEIGHTS
        loss = model(ids, labels=ids, use_cache=False, logits_to_keep=1).loss
    torch.testing.assert_close(loss, expected.detach())
    assert not loss.requires_grad


def test_the_model_has_its_own_loss_again(tiny_model: Any, token_ids: Any) -> None:
    model, ids = tiny_model("llama"), token_ids(2, 9)
    expected = model(ids, labels=ids).loss
    with training_exits(model) as objective:
        objective.weights = WEIGHTS
    assert torch.equal(model(ids, labels=ids).loss, expected)
    assert not hasattr(model, "_loss_function")


class _LargestTensor(TorchDispatchMode):
    """Remembers how many numbers the largest tensor had that an operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, list | tuple) else [made]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return made


def test_memory_does_not_grow_with_exits_or_tokens(monkeypatch: pytest.MonkeyPatch, tiny_model: Any) -> None:
    """No tensor is larger than a part's logits; what waits for the backward pass is as large as states and weights."""
    model, tokens, at_once = tiny_model("llama", vocab_size=500), 400, 10
    monkeypatch.setattr(head_loss, "LOGITS_AT_ONCE", 500 * at_once)
    states = [torch.randn(tokens, 32, requires_grad=True) for _ in range(6)]
    targets = torch.randint(500, (tokens,))
    with _LargestTensor() as largest:
        head = SharedHead(model, family_of(model.config))
        losses = summed_losses(head, states, [1 / 6] * 6, next_token_loss(targets))
        losses.total.backward()
    assert largest.numel <= max(at_once * 500, tokens * 32, model.lm_head.weight.numel())
    assert largest.numel < tokens * 500 / 10
    assert all(state.grad is not None and state.grad.any() for state in states)
