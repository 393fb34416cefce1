"""Packed weights: the same products but for rounding, and the same bits afterwards."""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from truedepth.engine.cpu.freed import is_freed
from truedepth.engine.cpu.kernels import kernels
from truedepth.engine.cpu.layouts import can_lay_out
from truedepth.engine.cpu.packing import pack_linear
from truedepth.engine.drafts.policy import FixedPolicy
from truedepth.engine.engine import Engine
from truedepth.errors import TruedepthError

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")

MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, tied": {"tie_word_embeddings": True},
    "llama, biases": {"attention_bias": True, "mlp_bias": True},
    "llama, tied, over one block": {"tie_word_embeddings": True, "vocab_size": 2500},
    "mistral": {},
    "qwen2, biases": {},
    "qwen2, biases, tied": {"tie_word_embeddings": True},
    "qwen3, tied": {"tie_word_embeddings": True},
    "phi3": {},
    "olmo2": {},
    "gemma2": {},
    "gemma3": {},
    "smollm3": {},
    "mixtral": {},
    "qwen3_moe": {},
}


@pytest.fixture(params=["our kernels", "oneDNN"], autouse=True)
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With our own kernels, and as where there is no compiler for them."""
    if request.param == "oneDNN":
        for module in ("cpu.kernels", "cpu.layouts", "cpu.quick"):
            monkeypatch.setattr(f"truedepth.engine.{module}.kernels", lambda: None)
    else:
        assert kernels() is not None, "the tests need a C compiler"


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, tiny_model: Any) -> Any:
    """Models of all families, with and without ties and biases."""
    return tiny_model(request.param.split(",")[0], **MODELS[request.param])


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: held.detach().clone().view(torch.int32) for name, held in model.named_parameters()}


@torch.no_grad()
def test_packed_logits_are_close_to_those_of_dense_weights(model: Any, token_ids: Any) -> None:
    """With fewer rows than oneDNN likes, and more."""
    for batch, length in ((1, 1), (1, 2), (3, 1), (1, 4), (2, 5)):
        ids = token_ids(batch, length)
        dense = model(ids).logits
        with Engine(model):
            packed = model(ids).logits
        torch.testing.assert_close(packed, dense, atol=2e-5, rtol=1e-4)


def test_every_parameter_comes_back_bit_for_bit(model: Any) -> None:
    """The same parameters too, tied ones still tied, that can be trained on."""
    with torch.no_grad():  # what a plain copy keeps, and a computation might not
        model.lm_head.weight[5, :3] = torch.tensor([-0.0, 1e-41, torch.inf])
        model.model.layers[1].self_attn.o_proj.weight[2, :2] = torch.tensor([-0.0, -1e-42])
    before, parameters = bits(model), dict(model.named_parameters())
    keys = set(model.state_dict())
    padding = model.model.embed_tokens.padding_idx
    with torch.inference_mode(), Engine(model):  # where a plan's tensors would be good for nothing else
        pass
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in parameters.items())
    assert all(held.equal(before[name]) for name, held in bits(model).items())
    assert set(model.state_dict()) == keys
    assert model.model.embed_tokens.padding_idx == padding
    assert not any("forward" in vars(module) for module in model.modules())
    for parameter in parameters.values():
        assert parameter.requires_grad and not parameter.is_inference() and parameter.is_contiguous()


def test_an_engine_that_nobody_holds_gives_the_weights_back(tiny_model: Any, asked: Any) -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    before = bits(model)
    engine = Engine(model)
    engine.generate(asked(3))
    del engine
    gc.collect()
    assert all(held.equal(before[name]) for name, held in bits(model).items())


def test_a_model_can_be_trained_after_decoding(tiny_model: Any, token_ids: Any, asked: Any) -> None:
    model, ids = tiny_model("qwen2", tie_word_embeddings=True), token_ids(2, 9)
    untouched = copy.deepcopy(model)
    with torch.inference_mode(), Engine(model) as engine:
        engine.generate(asked(2))
    for each in (model, untouched):
        each(ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.equal(untouched.get_parameter(name).grad), name


def test_packed_weights_are_not_held_twice(model: Any) -> None:
    """All linear weights of the layers, and the head, are in the packed layout only."""
    linear = {module.weight for module in model.modules() if type(module) is nn.Linear}
    before = sum(weight.nbytes for weight in linear)
    with Engine(model):
        assert before > 50_000
        assert sum(weight.untyped_storage().nbytes() for weight in linear if is_freed(weight)) == 4 * len(linear)
    assert sum(weight.untyped_storage().nbytes() for weight in linear) == before


@pytest.mark.parametrize("tied", [False, True])
def test_rows_of_the_head(tied: bool, tiny_model: Any) -> None:
    model = tiny_model("gemma2", vocab_size=2500, tie_word_embeddings=tied)
    ids = torch.tensor([2499, 0, 1023, 1024, 7, 2048, 1025])
    rows, table = model.lm_head.weight[ids].detach().clone(), model.model.embed_tokens.weight.detach().clone()
    with Engine(model) as engine, torch.no_grad():
        assert engine.runner.head_rows(ids).weight.equal(rows)
        hidden = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
        some = engine.runner.logits(hidden, pack_linear(engine.runner.head_rows(ids)))
        torch.testing.assert_close(some, engine.runner.logits(hidden)[..., ids], atol=1e-5, rtol=1e-4)
        repeated = ids.repeat(2, 3)
        torch.testing.assert_close(engine.runner.embed(repeated), table[repeated] * 32**0.5, atol=0, rtol=1e-6)
        assert engine.runner.embed(ids[:0]).shape == (0, 32)


def test_projections_may_be_called_in_any_order_on_any_input(tiny_model: Any) -> None:
    model = tiny_model("llama", attention_bias=True)
    first, second = torch.randn(2, 1, 5, 32, generator=torch.Generator().manual_seed(0))
    attention = model.model.layers[2].self_attn
    names = ["q_proj", "k_proj", "v_proj"]
    with torch.no_grad():
        dense = {(name, at): attention.get_submodule(name)(x) for name in names for at, x in enumerate((first, second))}
        calls = [
            ("v_proj", 0),
            ("v_proj", 0),
            ("q_proj", 1),
            ("q_proj", 0),
            ("k_proj", 1),
            ("k_proj", 0),
            ("v_proj", 1),
        ]
        with Engine(model):
            for name, at in calls:
                found = attention.get_submodule(name)((first, second)[at])
                torch.testing.assert_close(found, dense[name, at], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_a_packed_model_is_not_saved_or_copied(tied: bool, tiny_model: Any, tmp_path: Path) -> None:
    model = tiny_model("llama", tie_word_embeddings=tied)
    with Engine(model):
        for save in (model.state_dict, lambda: model.save_pretrained(tmp_path)):
            with pytest.raises(TruedepthError, match="packed for decoding; close its Engine"):
                save()
        assert not list(tmp_path.glob("*.safetensors"))
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert all(held.equal(model.state_dict()[name]) for name, held in again.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype, tiny_model: Any, plan_of: Any, asked: Any) -> None:
    """Packed where this machine can, dense elsewhere, and written by all the same."""
    model = tiny_model("qwen2").to(dtype)
    before = {name: held.clone() for name, held in model.state_dict().items()}
    with Engine(model) as engine:
        packed = any(is_freed(parameter) for parameter in model.parameters())
        assert packed == can_lay_out(torch.device("cpu"), dtype)
        for drafts in ([], [engine.draft(plan_of("0-3"))]):
            results = engine.generate(asked([6, 3, 5, 4]), drafts=drafts, policy=FixedPolicy(3))
            assert [len(result.token_ids) for result in results] == [6, 3, 5, 4]
    assert all(held.equal(before[name]) for name, held in model.state_dict().items())


def test_a_model_that_cannot_be_packed(
    tiny_model: Any, plan_of: Any, asked: Any, generated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("truedepth.engine.engine.can_lay_out", lambda device, dtype: False)
    model = tiny_model("gemma2")
    expected = generated(model, asked(6))
    with Engine(model) as engine:
        assert not any(is_freed(parameter) for parameter in model.parameters())
        for drafts in ([], [engine.draft(plan_of("0 2 3 5"))]):
            assert [
                result.token_ids for result in engine.generate(asked(6), drafts=drafts, policy=FixedPolicy(3))
            ] == expected
        assert model.state_dict()
