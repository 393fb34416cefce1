"""Modules whose weight something besides their own forward computes, changes, reads or shares."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from truedepth.engine.cpu.freed import is_freed
from truedepth.engine.engine import Engine
from truedepth.errors import TruedepthError, UnsupportedModelError


def tokens(results: Any) -> list[tuple[int, ...]]:
    return [tuple(result.token_ids) for result in results]


class Rolled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight.roll(1, 0)


class Mirrored(nn.Linear):
    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden).flip(-1)


def mirrored(linear: nn.Linear) -> None:
    linear.__class__ = Mirrored


def patched(linear: nn.Linear) -> None:
    before = linear.forward
    linear.forward = lambda hidden: before(hidden).flip(-1)  # type: ignore[method-assign]


def binarize(module: nn.Module, _: Any) -> None:
    weight: Any = module.weight
    weight.data.copy_(weight.data.sign())


def shared(model: Any, name: str) -> None:
    first, *others = (layer.get_submodule(name) for layer in model.model.layers)
    for other in others[:2]:
        other.weight = first.weight


def neighbour(model: Any) -> None:
    """A hook that multiplies with the weights of other modules."""
    mlp, head = model.model.layers[1].mlp, model.lm_head

    def add(_: nn.Module, given: tuple[Tensor], output: Tensor) -> Tensor:
        up = nn.functional.linear(given[0], mlp.up_proj.weight) + given[0] @ mlp.gate_proj.weight.T
        return output + 0.1 * up + head.weight.sum().detach() + mlp.down_proj.weight.data.mean()

    mlp.gate_proj.register_forward_hook(add)


WAYS: dict[str, Callable[[Any], Any]] = {
    "parametrized": lambda model: parametrize.register_parametrization(value(model), "weight", Rolled()),
    "parametrized head": lambda model: parametrize.register_parametrization(model.lm_head, "weight", Rolled()),
    "parametrized norm": lambda model: parametrize.register_parametrization(model.model.norm, "weight", Rolled()),
    "parametrized embedding": lambda model: parametrize.register_parametrization(
        model.model.embed_tokens, "weight", Rolled()
    ),
    "weight norm": lambda model: parametrizations.weight_norm(value(model)),
    "weight norm, by a hook": lambda model: nn.utils.weight_norm(value(model)),
    "spectral norm": lambda model: nn.utils.spectral_norm(value(model)),
    "pruned": lambda model: prune.l1_unstructured(value(model), "weight", 0.9),
    "pruned head": lambda model: prune.l1_unstructured(model.lm_head, "weight", 0.9),
    "a hook that changes the weight": lambda model: value(model).register_forward_pre_hook(binarize),
    "a hook that reads weights": neighbour,
    "a hook on the head": lambda model: model.lm_head.register_forward_hook(lambda _, __, out: out.flip(-1)),
    "a class of one's own": lambda model: mirrored(value(model)),
    "a head of a class of one's own": lambda model: mirrored(model.lm_head),
    "a forward of one's own": lambda model: patched(value(model)),
    "a head's forward of one's own": lambda model: patched(model.lm_head),
    "one weight in several layers": lambda model: shared(model, "self_attn.k_proj"),
    "one weight in several norms": lambda model: shared(model, "input_layernorm"),
    "one module in several layers": lambda model: setattr(model.model.layers[1], "mlp", model.model.layers[2].mlp),
}


def value(model: Any) -> Any:
    return model.model.layers[1].self_attn.v_proj


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch, about its own hooks
def test_tokens_and_weights(way: str, tied: bool, tiny_model: Any, token_ids: Any, asked: Any, generated: Any) -> None:
    """The engine writes what `generate` writes, and the model is as it was afterwards."""
    ids = token_ids(1, 8)
    plain, model, twin = (tiny_model("llama", num_hidden_layers=3, tie_word_embeddings=tied) for _ in range(3))
    for made in (model, twin):
        torch.manual_seed(0)
        WAYS[way](made)
    expected = generated(twin, asked(6))
    assert expected != generated(plain, asked(6)) or way.startswith("weight norm")
    forwards = {name: part.forward for name, part in model.named_modules() if "forward" in vars(part)}
    with torch.no_grad():
        before = model.eval()(ids).logits
        with Engine(model) as engine:
            assert any(map(is_freed, model.parameters()))
            assert tokens(engine.generate(asked(6))) == expected
        assert {name: part.forward for name, part in model.named_modules() if "forward" in vars(part)} == forwards
        assert generated(model, asked(6)) == expected
        assert model(ids).logits.equal(before)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("way", [way for way in WAYS if not way.startswith(("a hook", "spectral"))])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_changes_while_an_engine_is_open(way: str, tied: bool, tiny_model: Any, asked: Any, generated: Any) -> None:
    """From the next call on, the engine writes what the changed model writes; what has come stays afterwards."""
    model, twin = (tiny_model("llama", num_hidden_layers=3, tie_word_embeddings=tied) for _ in range(2))
    with Engine(model) as engine:
        assert tokens(engine.generate(asked(6))) == generated(twin, asked(6))
        WAYS[way](model)
        WAYS[way](twin)
        assert tokens(engine.generate(asked(6))) == generated(twin, asked(6))
    assert generated(model, asked(6)) == generated(twin, asked(6))


@pytest.mark.parametrize("where", ["", "model.layers.1.mlp"])
@torch.no_grad()
def test_compiled_code_finds_its_weights(
    where: str, tiny_model: Any, token_ids: Any, asked: Any, generated: Any
) -> None:
    model, ids = tiny_model("llama", num_hidden_layers=2), token_ids(1, 8)
    expected = generated(model, asked(6))
    model.get_submodule(where).compile(backend="eager")
    logits = model(ids).logits
    with Engine(model) as engine:
        assert tokens(engine.generate(asked(6))) == expected
        torch.testing.assert_close(model(ids).logits, logits, atol=1e-4, rtol=1e-4)
    assert model(ids).logits.equal(logits)


def test_packed_weights_can_be_read_and_nothing_else(tiny_model: Any) -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    names = ["model.layers.1.self_attn.v_proj.weight", "model.layers.1.self_attn.o_proj.weight", "lm_head.weight"]
    before = {name: model.get_parameter(name).detach().clone() for name in names}
    changes: list[Callable[[Any], Any]] = [
        lambda weight: weight.data.mul_(2),
        lambda weight: weight.data.__setitem__(0, 1.0),
        lambda weight: weight.detach().copy_(weight),
        lambda weight: weight.__setattr__("data", torch.zeros(weight.shape)),
        lambda weight: torch.add(weight, 1, out=weight),
        nn.init.zeros_,
        copy.deepcopy,
        pickle.dumps,
    ]
    with Engine(model), torch.no_grad():
        for name, numbers in before.items():
            weight = model.get_parameter(name)
            assert is_freed(weight) and isinstance(weight, nn.Parameter) and weight.requires_grad
            assert (weight.shape, weight.dtype, weight.device) == (numbers.shape, numbers.dtype, numbers.device)
            for read in (weight, weight.data, weight.detach(), weight.T.T, weight[:], torch.cat([weight])):
                assert torch.equal(read, numbers)
            assert weight.sum().equal(numbers.sum()) and weight.tolist() == numbers.tolist()
            for change in changes:
                with pytest.raises(TruedepthError, match="close its Engine before changing, saving or copying"):
                    change(weight)
        with pytest.raises(TruedepthError, match="close its Engine"):
            model.to(torch.float64)
        with pytest.raises(TruedepthError, match="close its Engine"):
            copy.deepcopy(model)
    assert all(model.get_parameter(name).equal(numbers) for name, numbers in before.items())


@pytest.mark.parametrize("where", ["", "model"])
def test_hooks_on_the_whole_model_are_refused(where: str, tiny_model: Any, asked: Any) -> None:
    """They would not be called."""
    model = tiny_model("llama")
    part = model.get_submodule(where)
    hook = part.register_forward_hook(lambda _, __, output: output)
    with pytest.raises(UnsupportedModelError, match=f"hooks on the {type(part).__name__}"):
        Engine(model)
    hook.remove()
    with Engine(model) as engine:
        assert engine.generate(asked(2))
        part.register_forward_pre_hook(lambda _, given: given)
        with pytest.raises(UnsupportedModelError, match="hooks on the"):
            engine.generate(asked(2))
