"""The compiled kernels compute what PyTorch does, each token for itself, and decoding works without them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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


DTYPES = [torch.float32, torch.bfloat16]

NEAR = {torch.float32: {"atol": 1e-5, "rtol": 1e-5}, torch.bfloat16: {"atol": 2e-2, "rtol": 1e-2}}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(deadline=None, max_examples=60)
@given(rows=st.integers(1, 40), inputs=st.integers(1, 70), outputs=st.integers(1, 150), bias=st.booleans())
def test_products(rows: int, inputs: int, outputs: int, bias: bool, dtype: torch.dtype) -> None:
    """Of any shape: also where outputs do not fill a panel, nor rows a tile."""
    weight, given_rows = numbers(outputs, inputs).to(dtype), numbers(rows, inputs, seed=1).to(dtype)
    added = numbers(outputs, seed=2).to(dtype) if bias else None
    layout = lay_out(weight, added)
    assert isinstance(layout, Panels)
    wide = nn.functional.linear(given_rows.float(), weight.float(), None if added is None else added.float())
    torch.testing.assert_close(layout.product(given_rows), wide.to(dtype), atol=1e-5, rtol=8e-3)
    assert layout.dense().equal(weight)
    ids = torch.arange(outputs - 1, -1, -2)
    assert layout.rows(ids).equal(weight[ids])


def test_a_weight_takes_inputs_of_its_own_dtype_only() -> None:
    layout = lay_out(numbers(48, 24).bfloat16(), None)
    with pytest.raises(TypeError, match=r"torch\.float32 is multiplied with a weight of torch\.bfloat16"):
        layout.product(numbers(5, 24))


def test_rows_that_do_not_lie_side_by_side() -> None:
    weight, strided = numbers(48, 24), numbers(5, 2, 24)[:, 1]
    torch.testing.assert_close(lay_out(weight, None).product(strided), strided @ weight.T)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 576), (2, 3, 100), (2, 4, 3, 17), (600, 1000)])
def test_norm(shape: tuple[int, ...], dtype: torch.dtype, compiled: Kernels) -> None:
    hidden, gain = numbers(*shape).to(dtype), numbers(shape[-1], seed=1)
    expected = nn.functional.rms_norm(hidden.float(), gain.shape, gain, 1e-5).to(dtype)
    torch.testing.assert_close(compiled.normalise(hidden, gain, 1e-5), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "function"), [("silu", nn.SiLU()), ("gelu_tanh", nn.GELU("tanh"))])
def test_activations(name: str, function: nn.Module, dtype: torch.dtype, compiled: Kernels) -> None:
    """Near 0 and far from it, in any number."""
    special = torch.tensor([0.0, -0.0, 1e-20, -1e-20, 88.0, -88.0, 200.0, -200.0, 3e4, -3e4])
    hidden = torch.cat([numbers(40_003) * 4, special]).to(dtype)
    torch.testing.assert_close(compiled.activate(name, hidden), function(hidden), atol=2e-6, rtol=8e-3)
    assert compiled.activate(name, hidden[7:8]).equal(compiled.activate(name, hidden)[7:8])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [16, 64, 80, 96, 128, 144, 256])
@pytest.mark.parametrize("heads", [(9, 3), (4, 4), (14, 2)])
@pytest.mark.parametrize(("batch", "tokens", "span"), [(1, 1, 1), (1, 1, 37), (3, 5, 40), (2, 1, 700)])
def test_attention(
    size: int, heads: tuple[int, int], batch: int, tokens: int, span: int, dtype: torch.dtype, compiled: Kernels
) -> None:
    """Over entries that lie in a cache, with and without a mask."""
    queries, keys = heads
    query = numbers(batch, tokens, queries, size).to(dtype).transpose(1, 2)
    key, value = (
        numbers(batch + 1, span + 3, keys, size, seed=seed).to(dtype)[1:, :span].transpose(1, 2) for seed in (1, 2)
    )
    mask = torch.zeros(batch, 1, tokens, span)
    for row in range(batch):
        for token in range(tokens):
            mask[row, :, token, max(1, span - tokens + token - row) :] = -torch.inf
    for added in (None, mask):
        expected = nn.functional.scaled_dot_product_attention(
            query.float(), key.float(), value.float(), attn_mask=added, scale=0.2, enable_gqa=True
        ).to(dtype)
        found = compiled.attend(query, key, value, None if added is None else added.to(dtype), 0.2)
        torch.testing.assert_close(found, expected.transpose(1, 2), **NEAR[dtype])


def test_capped_attention(compiled: Kernels) -> None:
    query, key, value = (numbers(1, 2, 7, 16, seed=seed) * 4 for seed in range(3))
    mask = torch.full((1, 1, 7, 7), -torch.inf).triu(1)
    scores = 5 * torch.tanh(query @ key.transpose(2, 3) / 5) + mask
    found = compiled.attend(query, key, value, mask, 1.0, 5.0)
    torch.testing.assert_close(found, (scores.softmax(-1) @ value).transpose(1, 2), **NEAR[torch.float32])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(deadline=None, max_examples=40)
@given(rows=st.integers(2, 30), inputs=st.integers(1, 70), outputs=st.integers(1, 100))
def test_a_rows_product_is_the_same_bits_among_others(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    layout = lay_out(numbers(outputs, inputs).to(dtype), None)
    given_rows = numbers(rows, inputs, seed=1).to(dtype)
    together = layout.product(given_rows)
    for row in range(rows):
        assert layout.product(given_rows[row : row + 1])[0].equal(together[row])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("span", [1, 15, 16, 17, 40])
def test_a_tokens_attention_is_the_same_bits_among_others(span: int, dtype: torch.dtype, compiled: Kernels) -> None:
    """Alone over its own entries, or with later tokens, which it does not see."""
    query = numbers(2, 6, 4, 64).to(dtype).transpose(1, 2)
    key, value = (numbers(2, 2, span + 6, 64, seed=seed).to(dtype) for seed in (1, 2))
    mask = torch.full((1, 1, 6, span + 6), -torch.inf, dtype=dtype).triu(span + 1)
    together = compiled.attend(query, key, value, mask, 0.125)
    for token in range(6):
        seen = span + token + 1
        alone = compiled.attend(query[:, :, token : token + 1], key[:, :, :seen], value[:, :, :seen], None, 0.125)
        assert alone[:, 0].equal(together[:, token])


@pytest.mark.usefixtures("threads_afterwards")
def test_any_number_of_threads_computes_the_same_bits() -> None:
    """Also more than there are processors, changed from call to call, and in a process that was forked."""
    layout, rows = lay_out(numbers(3000, 64), None), numbers(3, 64, seed=1)
    torch.set_num_threads(1)
    expected = layout.product(rows)
    for count in (2, 7, 1, 16, 3) * 20:
        torch.set_num_threads(count)
        assert layout.product(rows).equal(expected)
    child = os.fork()
    if child == 0:
        os._exit(0 if layout.product(rows).equal(expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.usefixtures("threads_afterwards")
def test_several_threads_of_a_program_may_call_them_at_once() -> None:
    torch.set_num_threads(2)
    layouts = [lay_out(numbers(2000, 48, seed=seed), None) for seed in range(4)]
    rows = numbers(2, 48)
    expected = [layout.product(rows) for layout in layouts]

    def same(at: int) -> bool:
        return all(layouts[at].product(rows).equal(expected[at]) for _ in range(200))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(same, range(4)))


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
    raise subprocess.CalledProcessError(1, "cc", stderr=b"products.c:1: error: no such thing")


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
