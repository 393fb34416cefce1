"""The weights and curricula of exits, held to numbers computed by hand from the paper's equations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truedepth.training.layerskip.exit_weights import exit_scales, exit_weights, gradual, rotational


def on(enabled: list[bool]) -> list[int]:
    return [layer for layer, value in enumerate(enabled) if value]


def test_scales_of_four_layers() -> None:
    # e(1) = 0.2 * 1, e(2) = 0.2 * (1 + 2), e(3) = 3 + 0.2 * (0 + 1 + 2)
    assert exit_scales(4, 0.2) == pytest.approx([0, 0.2, 0.6, 3.6])
    assert exit_scales(4, 1.0) == pytest.approx([0, 1, 3, 6])


def test_scales_of_thirty_two_layers() -> None:
    scales = exit_scales(32, 0.2)
    # 1 + ... + 7 = 28, 1 + ... + 15 = 120, 1 + ... + 30 = 465
    assert [scales[layer] for layer in (0, 1, 7, 15, 30, 31)] == pytest.approx([0, 0.2, 5.6, 24, 93, 31 + 93])
    assert exit_scales(32, 1.0)[31] == pytest.approx(31 + 465)


def test_weights_of_four_layers() -> None:
    everywhere = exit_weights(exit_scales(4, 0.2), [True] * 4)
    assert everywhere == pytest.approx({1: 0.2 / 4.4, 2: 0.6 / 4.4, 3: 3.6 / 4.4})
    assert exit_weights(exit_scales(4, 1.0), [False, True, False, True]) == pytest.approx({1: 1 / 7, 3: 6 / 7})


def test_weights_of_thirty_two_layers() -> None:
    """R = 8 at step 3: exits at layers 3, 11, 19, 27 and 31, of scales 1.2, 13.2, 38, 75.6 and 124."""
    weights = exit_weights(exit_scales(32, 0.2), rotational(32, 3, 8))
    total = 1.2 + 13.2 + 38 + 75.6 + 124
    assert weights == pytest.approx(
        {3: 1.2 / total, 11: 13.2 / total, 19: 38 / total, 27: 75.6 / total, 31: 124 / total}
    )


def test_without_a_scale_only_the_last_layer_learns() -> None:
    assert exit_weights(exit_scales(4, 0.0), [True] * 4) == {3: 1.0}
    assert exit_weights(exit_scales(1, 1.0), [True]) == {0: 1.0}


def test_rotational_of_four_layers() -> None:
    assert [on(rotational(4, step, 2)) for step in range(3)] == [[0, 2, 3], [1, 3], [0, 2, 3]]


def test_rotational_of_thirty_two_layers() -> None:
    assert on(rotational(32, 0, 8)) == [0, 8, 16, 24, 31]
    assert on(rotational(32, 7, 8)) == [7, 15, 23, 31]
    assert on(rotational(32, 17, 8)) == [1, 9, 17, 25, 31]


@given(st.integers(1, 40), st.integers(1, 10), st.integers(0, 1000))
def test_each_exit_has_its_turn_once_in_a_rotation(num_layers: int, every: int, start: int) -> None:
    turns = [rotational(num_layers, start + step, every) for step in range(every)]
    assert all(turn[-1] for turn in turns)
    assert [sum(turn[layer] for turn in turns) for layer in range(num_layers - 1)] == [1] * (num_layers - 1)


def test_gradual_of_four_layers() -> None:
    """T = 16: one more every 16 / 8 = 2 steps."""
    first = [on(gradual(4, step, 16)) for step in range(7)]
    assert first == [[3], [3], [2, 3], [2, 3], [1, 2, 3], [1, 2, 3], [0, 1, 2, 3]]
    assert on(gradual(4, 15, 16)) == [0, 1, 2, 3]


def test_gradual_of_thirty_two_layers() -> None:
    """T = 640: one more every 10 steps, and all from step 310 on."""
    assert on(gradual(32, 9, 640)) == [31]
    assert on(gradual(32, 10, 640)) == [30, 31]
    assert on(gradual(32, 309, 640)) == list(range(1, 32))
    assert on(gradual(32, 310, 640)) == list(range(32))
    # T = 100: one more every 1.5625 steps.
    assert on(gradual(32, 1, 100)) == [31]
    assert on(gradual(32, 2, 100)) == [30, 31]
    assert on(gradual(32, 49, 100)) == list(range(32))


@given(st.integers(1, 40), st.integers(1, 500), st.floats(0, 2), st.integers(0, 499), st.integers(1, 8))
def test_weights_sum_to_one(num_layers: int, total: int, scale: float, step: int, every: int) -> None:
    for enabled in (gradual(num_layers, step, total), rotational(num_layers, step, every)):
        weights = exit_weights(exit_scales(num_layers, scale), enabled)
        assert sum(weights.values()) == pytest.approx(1)
        assert num_layers - 1 in weights
        assert all(weight > 0 for weight in weights.values())
