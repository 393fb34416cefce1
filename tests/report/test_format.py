import math

import pytest

from truedepth.plan import DepthPlan
from truedepth.report.format import depth, duration, number, size


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (14.86, "14.9"),
        (0.3127, "0.313"),
        (2917.4, "2,917"),
        (1.24e9, "1.2e9"),
        (3e-7, "3.0e-7"),
        (-0.25, "-0.250"),
        (math.inf, "infinite"),
        (math.nan, "not a number"),
    ],
)
def test_a_number_of_any_size_is_short(value: float, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 µs"),
        (0.00098, "980 µs"),
        (0.41, "410 ms"),
        (2.5, "2.50 s"),
        (287.4, "4 min 47 s"),
        (7260, "2 h 1 min"),
    ],
)
def test_durations_have_a_fitting_unit(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(("count", "shown"), [(12, "12.0 B"), (538_060_000, "538 MB"), (28.1e9, "28.1 GB")])
def test_sizes_have_a_fitting_unit(count: float, shown: str) -> None:
    assert size(count) == shown


@pytest.mark.parametrize(
    ("notation", "said"),
    [
        ("0-5", "all 6 layers"),
        ("0-3 5", "5 of 6 layers"),
        ("0 (1|2) (3|4) 5", "all 6 layers in 4 stages"),
        ("0 (1|2) 5", "4 of 6 layers in 3 stages"),
        ("0 (1+2) 3-5", "all 6 layers in 5 stages"),
    ],
)
def test_depth_says_layers_and_stages(notation: str, said: str) -> None:
    assert depth(DepthPlan.parse(notation, 6)) == said
