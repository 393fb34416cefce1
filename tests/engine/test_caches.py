"""The caches: every sequence in its own row, every token at its own position."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from truedepth.engine.runner.caches import KVCache

ROWS, CAPACITY, HEADS, DIM = 3, 7, 2, 4


def slots(positions: dict[int, list[int]]) -> torch.Tensor:
    return torch.tensor([row * CAPACITY + position for row, own in positions.items() for position in own])


def entries(rows: int, tokens: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, rows, HEADS, tokens, DIM, generator=generator)
    return keys, values


def test_tokens_go_to_their_sequences_positions() -> None:
    cache = KVCache(ROWS, CAPACITY)
    keys, values = entries(2, 2)
    cache.write(5, keys, values, slots({1: [0, 1], 2: [3, 4]}))
    read_keys, read_values = cache.read(5, slice(1, 3), 5)
    assert read_keys.shape == (2, HEADS, 5, DIM)
    for read, written in ((read_keys, keys), (read_values, values)):
        assert read[0, :, :2].equal(written[0])
        assert read[1, :, 3:].equal(written[1])
        assert not read[0, :, 2:].any() and not read[1, :, :3].any(), "what nobody wrote is zero, not NaN"
    assert not cache.read(5, slice(0, 1), CAPACITY)[0].any()


def test_reading_copies_nothing() -> None:
    cache = KVCache(ROWS, CAPACITY)
    cache.write(0, *entries(1, 1), slots({0: [0]}))
    first, second = (cache.read(0, slice(0, 2), 4)[0] for _ in range(2))
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


def test_layers_take_memory_when_they_first_write_and_give_it_back() -> None:
    cache = KVCache(ROWS, CAPACITY)
    assert cache.bytes == 0
    one = 2 * ROWS * CAPACITY * HEADS * DIM * 4
    for layer in (4, 9, 4):
        cache.write(layer, *entries(1, 2), slots({0: [0, 1]}))
    assert cache.bytes == 2 * one
    cache.keep_only([9, 11])
    assert cache.bytes == one
    keys, values = entries(1, 1)
    cache.write(7, keys[:, :1, :, :2], values[:, :1, :, :2], slots({0: [0]}))  # of another width
    assert cache.bytes == one + one // 4


def test_a_read_only_cache_is_not_written() -> None:
    cache = KVCache(ROWS, CAPACITY)
    cache.write(0, *entries(1, 2), slots({0: [0, 1]}))
    before = cache.read(0, slice(0, 1), 2)[0].clone()
    read_only = cache.read_only()
    read_only.write(0, *entries(1, 2, seed=1), slots({0: [0, 1]}))
    assert read_only.read(0, slice(0, 1), 2)[0].equal(before)


@given(st.data())
def test_any_history_of_writing_taking_back_and_moving(data: Any) -> None:
    """Against lists of numbers: sequences grow by runs of tokens, go back, and move to other rows when some end."""
    cache = KVCache(ROWS, CAPACITY)
    alive: list[list[float]] = [[] for _ in range(ROWS)]
    number = 0.0
    for _ in range(data.draw(st.integers(1, 12))):
        if len(alive) > 1 and data.draw(st.booleans()):
            gone = data.draw(st.integers(0, len(alive) - 1))
            last = alive.pop()
            if gone < len(alive):
                alive[gone] = last
                cache.move_row(len(alive), gone, len(last))
            continue
        for own in alive:  # taking back is no work: the next token overwrites
            del own[data.draw(st.integers(0, len(own))) :]
        tokens = data.draw(st.integers(1, 3))
        if max(map(len, alive)) + tokens > CAPACITY:
            continue
        positions = {row: list(range(len(own), len(own) + tokens)) for row, own in enumerate(alive)}
        new = torch.arange(number, number + len(alive) * tokens).view(len(alive), 1, tokens, 1)
        number += new.numel()
        cache.write(3, new, -new, slots(positions))
        for own, run in zip(alive, new.flatten(1).tolist(), strict=True):
            own.extend(run)
        keys, values = cache.read(3, slice(0, len(alive)), max(map(len, alive)))
        for row, own in enumerate(alive):
            assert keys[row, 0, : len(own), 0].tolist() == own
            assert values[row, 0, : len(own), 0].tolist() == [-held for held in own]
