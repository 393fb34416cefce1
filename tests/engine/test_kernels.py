"""The compiled kernels compute what PyTorch does, and decoding works without them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from truedepth.engine.cpu import kernels as room
from truedepth.engine.cpu.kernels import Kernels, kernels
from truedepth.engine.cpu.layouts import Blocks, Panels, lay_out
from truedepth.engine.engine import Engine


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def compiled() -> Kernels:
    found = kernels()
    assert found is not None, "the tests need a C compiler"
    return found


@pytest.fixture
def nothing_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A machine on which no kernel was compiled yet; the folder where they will be."""
    monkeypatch.setattr(room, "user_cache_path", lambda name: tmp_path)
    kernels.cache_clear()
    yield tmp_path / "kernels"
    kernels.cache_clear()


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(1, 40), inputs=st.integers(1, 70), outputs=st.integers(1, 150), bias=st.booleans())
def test_products(rows: int, inputs: int, outputs: int, bias: bool) -> None:
    """Of any shape: also where outputs do not fill a panel, nor rows a tile."""
    weight, given_rows = numbers(outputs, inputs), numbers(rows, inputs, seed=1)
    added = numbers(outputs, seed=2) if bias else None
    layout = lay_out(weight, added)
    assert isinstance(layout, Panels)
    torch.testing.assert_close(layout.product(given_rows), nn.functional.linear(given_rows, weight, added))
    assert layout.dense().equal(weight)
    ids = torch.arange(outputs - 1, -1, -2)
    assert layout.rows(ids).equal(weight[ids])


def test_rows_that_do_not_lie_side_by_side() -> None:
    weight, strided = numbers(48, 24), numbers(5, 2, 24)[:, 1]
    torch.testing.assert_close(lay_out(weight, None).product(strided), strided @ weight.T)


@pytest.mark.parametrize("shape", [(1, 1, 576), (2, 3, 100), (2, 4, 3, 17), (600, 1000)])
def test_norm(shape: tuple[int, ...], compiled: Kernels) -> None:
    hidden, gain = numbers(*shape), numbers(shape[-1], seed=1)
    torch.testing.assert_close(
        compiled.normalise(hidden, gain, 1e-5), nn.functional.rms_norm(hidden, gain.shape, gain, 1e-5)
    )


@pytest.mark.parametrize("size", [16, 64, 80, 96, 128, 144, 256])
@pytest.mark.parametrize("heads", [(9, 3), (4, 4), (14, 2)])
@pytest.mark.parametrize(("batch", "tokens", "span"), [(1, 1, 1), (1, 1, 37), (3, 5, 40), (2, 1, 700)])
def test_attention(size: int, heads: tuple[int, int], batch: int, tokens: int, span: int, compiled: Kernels) -> None:
    """Over entries that lie in a cache, with and without a mask."""
    queries, keys = heads
    query = numbers(batch, tokens, queries, size).transpose(1, 2)
    key, value = (numbers(batch + 1, span + 3, keys, size, seed=seed)[1:, :span].transpose(1, 2) for seed in (1, 2))
    mask = torch.zeros(batch, 1, tokens, span)
    for row in range(batch):
        for token in range(tokens):
            mask[row, :, token, max(1, span - tokens + token - row) :] = -torch.inf
    for added in (None, mask):
        expected = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=added, scale=0.2, enable_gqa=True
        )
        found = compiled.attend(query, key, value, added, 0.2)
        torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(2, 30), inputs=st.integers(1, 70), outputs=st.integers(1, 100))
def test_a_rows_product_is_the_same_bits_among_others(rows: int, inputs: int, outputs: int) -> None:
    layout, given_rows = lay_out(numbers(outputs, inputs), None), numbers(rows, inputs, seed=1)
    together = layout.product(given_rows)
    for row in range(rows):
        assert layout.product(given_rows[row : row + 1])[0].equal(together[row])


@pytest.mark.parametrize("span", [1, 15, 16, 17, 40])
def test_a_tokens_attention_is_the_same_bits_among_others(span: int, compiled: Kernels) -> None:
    """Alone over its own entries, or with later tokens, which it does not see."""
    query = numbers(2, 6, 4, 64).transpose(1, 2)
    key, value = (numbers(2, 2, span + 6, 64, seed=seed) for seed in (1, 2))
    mask = torch.full((1, 1, 6, span + 6), -torch.inf).triu(span + 1)
    together = compiled.attend(query, key, value, mask, 0.125)
    for token in range(6):
        seen = span + token + 1
        alone = compiled.attend(query[:, :, token : token + 1], key[:, :, :seen], value[:, :, :seen], None, 0.125)
        assert alone[:, 0].equal(together[:, token])


def test_what_is_masked_counts_for_nothing(compiled: Kernels) -> None:
    query, key, value = numbers(1, 2, 1, 16), numbers(1, 2, 9, 16), numbers(1, 2, 9, 16)
    mask = torch.zeros(1, 1, 1, 9)
    mask[..., 5:] = -torch.inf
    before = compiled.attend(query, key, value, mask, 1.0)
    value[:, :, 5:] = 1e30
    assert compiled.attend(query, key, value, mask, 1.0).equal(before)


def test_entries_go_to_their_slots(compiled: Kernels) -> None:
    held, new = torch.zeros(3, 10, 2, 16), numbers(2, 4, 2, 16).transpose(1, 2)  # (B, H, T, d)
    slots = torch.tensor([20, 21, 22, 29, 3, 4, 5, 6])
    compiled.store(held, new, slots)
    expected = torch.zeros(30, 2, 16)
    expected[slots] = new.transpose(1, 2).reshape(8, 2, 16)
    assert held.view(30, 2, 16).equal(expected)


def test_compiled_once(nothing_built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels() is not None
    (library,) = nothing_built.iterdir()
    assert library.suffix == ".so"
    made = library.stat().st_mtime_ns
    kernels.cache_clear()
    assert kernels() is not None
    assert [path.stat().st_mtime_ns for path in nothing_built.iterdir()] == [made]


def fail(*_: Any, **__: Any) -> Any:
    raise subprocess.CalledProcessError(1, "cc", stderr=b"kernels.c:1: error: no such thing")


@pytest.mark.parametrize("lacking", ["a compiler", "its success"])
def test_decoding_works_without_them(
    lacking: str, nothing_built: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Any, asked: Any, generated: Any
) -> None:
    """And the user is told once, with the remedy."""
    model = tiny_model("llama")
    expected = generated(model, asked(6))
    kernels.cache_clear()
    if lacking == "a compiler":
        monkeypatch.setattr("shutil.which", lambda name: None)
        said = "there is no C compiler; install gcc"
    else:
        monkeypatch.setattr("subprocess.run", fail)
        said = "error: no such thing; install gcc"
    with pytest.warns(UserWarning, match=said):
        assert isinstance(lay_out(numbers(8, 8), None), Blocks)
    with Engine(model) as engine:
        assert [result.token_ids for result in engine.generate(asked(6))] == expected
