"""Rows: that packing loses nothing and mixes nothing, and that text is tokenised once."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from truedepth.errors import TextError
from truedepth.models.rewire import apply
from truedepth.plan import DepthPlan
from truedepth.training.data.rows import IGNORED, TokenRows
from truedepth.training.data.sources import DataSource
from truedepth.training.data.tokenized import TokenizedItems, tokenize

MIXED = st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=30)


def items_of(shapes: list[tuple[int, bool]]) -> TokenizedItems:
    """Items of given lengths, divisible or not; each token has an id of its own, and all are in the loss."""
    lengths = torch.tensor([length for length, _ in shapes])
    count = int(lengths.sum())
    return TokenizedItems(
        ids=torch.arange(count, dtype=torch.int32),
        loss_mask=torch.ones(count, dtype=torch.bool),
        stops=lengths.cumsum(0),
        divisible=torch.tensor([divisible for _, divisible in shapes]),
        origins=torch.tensor([[0, 1, number] for number in range(len(shapes))]),
        names=("items.jsonl",),
    )


class TestPacking:
    @given(MIXED, st.integers(2, 50), st.booleans())
    def test_every_token_is_predicted_once_from_its_own_item(
        self, shapes: list[tuple[int, bool]], length: int, packed: bool
    ) -> None:
        items = items_of(shapes)
        expected, start = set(), 0
        for size, divisible in shapes:
            if divisible or size <= length:
                expected |= set(range(start + 1, start + size))
            start += size
        try:
            rows = TokenRows(items, length, packed=packed, too_long="drop")
        except TextError:
            assert not expected
            return
        predicted = []
        for index in range(len(rows)):
            row = rows[index]
            assert len(row["input_ids"]) <= length
            assert len(row["input_ids"]) == rows.lengths[index]
            for at, (token, label, position) in enumerate(
                zip(*(row[name].tolist() for name in ("input_ids", "labels", "position_ids")), strict=True)
            ):
                assert (label == IGNORED) == (position == 0)
                if position:
                    assert row["input_ids"][at - 1] == token - 1
                    assert row["position_ids"][at - 1] == position - 1
                    predicted.append(label)
        assert sorted(predicted) == sorted(expected)

    @given(st.lists(st.integers(2, 30), min_size=1, max_size=60))
    def test_rows_are_full(self, sizes: list[int]) -> None:
        """No two rows could be one, and documents leave only the last row unfilled."""
        whole = TokenRows(items_of([(size, False) for size in sizes]), 30)
        sums = sorted(whole.lengths.tolist())
        assert len(sums) == 1 or sums[0] + sums[1] > 30
        cut = TokenRows(items_of([(size, True) for size in sizes]), 30)
        assert all(length >= 29 for length in cut.lengths.tolist()[:-1])

    def test_a_batch(self) -> None:
        rows = TokenRows(items_of([(3, False), (4, False), (2, False)]), 8, pad_id=99)
        batch = rows.collate([rows[0], rows[1]])
        assert batch["input_ids"].tolist() == [[3, 4, 5, 6, 0, 1, 2, 99], [7, 8, *[99] * 6]]
        assert batch["labels"][0].tolist() == [-100, 4, 5, 6, -100, 1, 2, -100]
        assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 0], [0, 1, 0, 1, 2, 3, 4, 5]]
        assert batch["row"].tolist() == [0, 1]
        assert set(batch) == {"input_ids", "labels", "position_ids", "row"}

    def test_an_unpacked_batch(self) -> None:
        items = items_of([(3, False), (5, False), (9, True)])
        items.loss_mask[3:6] = False  # the prompt of the second item
        rows = TokenRows(items, 6, packed=False)
        batch = rows.collate([rows[index] for index in range(len(rows))])
        assert batch["input_ids"].shape == (4, 6)  # the document is two rows
        assert sorted(batch["response_start"].tolist()) == [1, 1, 1, 3]

    def test_a_row_knows_where_it_came_from(self) -> None:
        rows = TokenRows(items_of([(3, False), (4, False), (9, True)]), 8)
        assert [rows.where(row) for row in range(len(rows))] == [
            "items.jsonl, line 2",
            "items.jsonl, line 2",
            "items.jsonl, line 1; items.jsonl, line 0",
        ]

    def test_too_long_items(self) -> None:
        items = items_of([(3, False), (9, False)])
        with pytest.raises(TextError, match=r"items.jsonl, line 1 has 9 tokens, and a row has 8"):
            TokenRows(items, 8)
        with pytest.raises(TextError, match=r"line 1 has 9 tokens, and a row has 2; so have 2 others, up to 12;"):
            TokenRows(items_of([(30, True), (9, False), (3, False), (12, False)]), 2)
        assert len(TokenRows(items, 8, too_long="drop")) == 1
        with pytest.raises(TextError, match="no item of the training text fits"):
            TokenRows(items_of([(9, False)]), 8, too_long="drop")


@pytest.mark.parametrize("plan", [None, "0 (1|2|3) 5"])
def test_an_item_never_sees_its_neighbour(
    family_name: str, plan: str | None, tiny_model: Callable[..., Any], random_items: Callable[..., Any]
) -> None:
    """In every family, with windows of attention and without: packed logits are those of each item by itself."""
    model = tiny_model(family_name)
    if plan:
        apply(model, DepthPlan.parse(plan, 6))
    rows = TokenRows(random_items(12, longest=18), 40)
    batch = rows.collate([rows[index] for index in range(len(rows))])
    with torch.no_grad():
        together = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        for index in range(len(rows)):
            starts = [*(batch["position_ids"][index] == 0).nonzero()[:, 0].tolist(), 40]
            for start, stop in pairwise(starts):
                if start >= rows.lengths[index]:
                    break
                alone = model(batch["input_ids"][index : index + 1, start:stop], use_cache=False).logits[0]
                torch.testing.assert_close(together[index, start:stop], alone, rtol=1e-4, atol=1e-4)


class TestCache:
    @pytest.fixture
    def source(self, write_lines: Callable[..., Path]) -> DataSource:
        file = write_lines([{"prompt": "ab", "response": "cd"}, {"prompt": "ef", "response": "g"}])
        return DataSource(file=str(file), format="prompt-response")

    def test_tokenises_once(
        self,
        source: DataSource,
        byte_tokenizer: Callable[..., Any],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        tokenizer, cache = byte_tokenizer(), tmp_path / "cache"
        first = tokenize([source], tokenizer, cache=cache)
        monkeypatch.setattr("truedepth.training.data.tokenized._tokenized", lambda *_: pytest.fail("tokenised again"))
        second = tokenize([source], byte_tokenizer(), cache=cache)
        for name in ("ids", "loss_mask", "stops", "divisible", "origins"):
            assert torch.equal(getattr(first, name), getattr(second, name))
        assert tokenizer.decode(second.ids.tolist()) == "abcd</s>efg</s>"
        assert str(second.where(1)) == f"{source.file}, line 2"

    def test_what_it_depends_on(self, source: DataSource, byte_tokenizer: Callable[..., Any], tmp_path: Path) -> None:
        """Text, fields, chat template and what is trained on each make new tokens."""
        cache = tmp_path / "cache"
        chat = source.model_copy(update={"chat_template": True})
        swapped = source.model_copy(update={"prompt_field": "response", "response_field": "prompt"})
        for sources, template, responses in [
            ([source], "", "all"),
            ([source], "", "last"),
            ([chat], "{% for m in messages %}{{ m['content'] }}{% endfor %}", "all"),
            ([chat], "{% for m in messages %}-{{ m['content'] }}{% endfor %}", "all"),
            ([swapped], "", "all"),
            ([source, source], "", "all"),
        ]:
            before = len(list(cache.glob("*")))
            tokenize(sources, byte_tokenizer(template), responses=responses, cache=cache)  # type: ignore[arg-type]
            assert len(list(cache.glob("*"))) == before + 1
        file = Path(str(source.file))
        file.write_text(file.read_text().replace("cd", "xy"), encoding="utf-8")
        assert byte_tokenizer().decode(tokenize([source], byte_tokenizer(""), cache=cache).ids[:4].tolist()) == "abxy"

    @pytest.mark.parametrize("damage", [b"", b"\x00" * 40, None])
    def test_a_damaged_file_is_made_again(
        self, damage: bytes | None, source: DataSource, byte_tokenizer: Callable[..., Any], tmp_path: Path
    ) -> None:
        cache = tmp_path / "cache"
        expected = tokenize([source], byte_tokenizer(), cache=cache)
        (file,) = cache.glob("*")
        file.write_bytes(file.read_bytes()[:-3] if damage is None else damage)
        assert torch.equal(tokenize([source], byte_tokenizer(), cache=cache).ids, expected.ids)

    def test_no_items(
        self, byte_tokenizer: Callable[..., Any], write_lines: Callable[..., Path], tmp_path: Path
    ) -> None:
        source = DataSource(file=str(write_lines([])))
        with pytest.raises(TextError, match="has no items"):
            tokenize([source], byte_tokenizer(), cache=tmp_path / "cache")
