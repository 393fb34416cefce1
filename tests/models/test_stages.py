"""One stage, on layers whose arithmetic a person can follow, and on those of every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from truedepth.families import Branch, Family, family_of
from truedepth.models.stages import attention_output, ffn_output, run_group, to_logits


class Times(nn.Module):
    """Multiplies by a number; as attention, by the number that its inputs name as well."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, hidden: Tensor) -> Tensor:
        return self.factor * hidden


class Attention(Times):
    def forward(self, hidden_states: Tensor, scale: float = 1.0) -> tuple[Tensor, None]:  # type: ignore[override]
        return self.factor * scale * hidden_states, None


def toy_layer(attention: float, ffn: float, norm: float = 1.0) -> nn.Module:
    layer = nn.Module()
    layer.attn, layer.ffn, layer.norm = Attention(attention), Times(ffn), Times(norm)
    return layer


TOY = Family(
    name="toy",
    model_types=("toy",),
    attention=Branch(before=(), module="attn", after=()),
    ffn=Branch(before=(), module="ffn", after=()),
    cannot={},
)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("lp", 2.0 * (1 + 3 + 5) * (1 + 7 + 11)),  # u = x + sum A(x); y = u + sum F(u)
        ("par", 2.0 * (1 + (3 + 7 * (1 + 3)) + (5 + 11 * (1 + 5)))),  # x + sum [A(x) + F(x + A(x))]
    ],
)
def test_forms(form: Any, expected: float) -> None:
    layers = [toy_layer(3, 7), toy_layer(5, 11)]
    assert run_group(layers, [{}, {}], TOY, form, torch.tensor(2.0)).item() == expected


def test_each_layer_is_given_its_own_inputs() -> None:
    layers = [toy_layer(3, 0), toy_layer(5, 0)]
    output = run_group(layers, [{"scale": 10.0}, {"scale": 100.0}], TOY, "lp", torch.tensor(1.0))
    assert output.item() == 1 + 30 + 500


def test_norms_before_and_after_are_inside_the_branch() -> None:
    family = Family("toy", ("toy",), Branch(("norm",), "attn", ("norm", "norm")), Branch((), "ffn", ("norm",)), {})
    layer = toy_layer(3, 7, norm=2)
    assert attention_output(layer, family, torch.tensor(1.0), {}).item() == 2 * 3 * 2 * 2
    assert ffn_output(layer, family, torch.tensor(1.0)).item() == 7 * 2


def test_the_input_is_left_alone() -> None:
    hidden = torch.ones(2, 3, 4)
    run_group([toy_layer(1, 1), toy_layer(1, 1)], [{}, {}], TOY, "lp", hidden)
    assert torch.equal(hidden, torch.ones(2, 3, 4))


@pytest.mark.parametrize("form", ["lp", "par"])
@torch.inference_mode()
def test_group_of_one_is_the_layer(family_name: str, form: Any, tiny_model: Any, token_ids: Any) -> None:
    """Both forms have the ordinary layer as their special case."""
    model = tiny_model(family_name)
    family = family_of(model.config)
    layers = family.decoder_layers(model)
    seen: list[tuple[Tensor, dict[str, Any], Tensor]] = []
    for layer in layers:
        layer.register_forward_hook(lambda _, args, inputs, out: seen.append((args[0], inputs, out)), with_kwargs=True)
    model(token_ids(2, 12), use_cache=False)
    for layer, (hidden, inputs, expected) in zip(layers, seen, strict=True):
        torch.testing.assert_close(run_group([layer], [inputs], family, form, hidden), expected, rtol=0, atol=1e-6)


@torch.inference_mode()
def test_to_logits(family_name: str, tiny_model: Any, token_ids: Any) -> None:
    model = tiny_model(family_name)
    last: list[Tensor] = []
    model.model.norm.register_forward_pre_hook(lambda _, args: last.append(args[0]))
    logits = model(token_ids(2, 12)).logits
    assert torch.equal(to_logits(model, family_of(model.config), last[0]), logits)
