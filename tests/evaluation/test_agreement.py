from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from truedepth.evaluation.agreement import Agreement


def decode_by_hand(row: str, length: int) -> list[int]:
    """Accepted tokens of each round, deciding token by token as a decoder does."""
    taken, place = [], 0
    while place + length <= len(row):
        count = 0
        while count < length and row[place + count] == "1":
            count += 1
        taken.append(count)
        place += count + 1  # the token that the target adds
    return taken


@given(st.lists(st.text("01", max_size=40), min_size=1), st.integers(1, 9))
def test_rounds_are_those_of_a_decoder(rows: list[str], length: int) -> None:
    assert Agreement(tuple(rows)).rounds(length) == [count for row in rows for count in decode_by_hand(row, length)]


def test_share_counts_places_of_all_texts() -> None:
    assert Agreement(("1101", "0")).share == 3 / 5


def test_a_text_that_is_too_short_has_no_round() -> None:
    assert Agreement(("111",)).rounds(4) == []
