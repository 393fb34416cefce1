"""Drafts against plain decoding, by a scripted clock."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from truedepth.errors import SearchError
from truedepth.plan import DepthPlan
from truedepth.records.journal import Journal
from truedepth.search.draft_benchmark import DraftBenchmark, DraftConfig, DraftRun
from truedepth.search.draft_search import Candidate

EXIT = DraftConfig(Candidate("early-exit", DepthPlan.of_layers([0], 4)), 2)
ADAPTIVE = DraftConfig(EXIT.candidate, None)


class NoEngine:
    def draft(self, plan: DepthPlan, vocabulary: Any = None) -> DepthPlan:
        return plan


class Script:
    """Plain runs take ten seconds; the draft takes five, four, ... by prompt."""

    def __init__(self, tokens: int = 11) -> None:
        self.tokens = tokens
        self.calls: list[tuple[int, int | None, bool]] = []

    def run(self, engine: Any, request: Any, draft: Any, num_speculative_tokens: int | None) -> DraftRun:
        prompt = request.prompt_ids[0]
        self.calls.append((prompt, num_speculative_tokens, draft is not None))
        tokens = list(range(self.tokens))
        if draft is None:
            return DraftRun(tokens, 10.0, [], [])
        return DraftRun([*tokens[:-1], prompt], 5.0 - prompt, [2, 2, 1], [2, 0, 1])


@pytest.fixture
def benchmark(tmp_path: Path) -> Any:
    def make(script: Script, prompts: Sequence[Sequence[int]] = ((1,), (2,), (3,))) -> DraftBenchmark:
        journal = Journal(tmp_path / "journal.jsonl", {})
        engine: Any = NoEngine()
        timer: Any = script
        return DraftBenchmark("validation", engine, timer, journal, prompts, 10, {})

    return make


def test_figures_compare_runs_of_the_same_prompt(benchmark: Any) -> None:
    (record,) = benchmark(Script()).run([EXIT])
    assert (record.low, record.speedup, record.high) == (10 / 4, 10 / 3, 10 / 2)
    assert record.lower_quartile == pytest.approx((2.5 + 10 / 3) / 2)
    assert (record.plain_tokens_per_second, record.tokens_per_second) == (1.0, pytest.approx(10 / 3))
    assert (record.rounds, record.drafted, record.accepted) == (9, 15, 9)
    assert record.acceptance_by_position == [pytest.approx(2 / 3), 0.5]
    assert (record.runs, record.same_texts) == (3, 0)
    assert record.pays


def test_runs_take_turns_after_one_that_does_not_count(benchmark: Any) -> None:
    script = Script()
    benchmark(script, [[1], [2]]).run([EXIT, ADAPTIVE])
    assert [call[0] for call in script.calls] == [1] * 3 + [1] * 3 + [2] * 3
    assert {call[1:] for call in script.calls[:3]} == {(None, False), (2, True), (None, True)}
    first, second = script.calls[3:6], script.calls[6:9]
    assert [call[1:] for call in first] == [call[1:] for call in reversed(second)]


def test_what_was_timed_is_not_timed_again(benchmark: Any) -> None:
    again = Script()
    first = benchmark(Script()).run([EXIT])
    assert benchmark(again).run([EXIT]) == first
    assert again.calls == []


@pytest.mark.parametrize(("slowest", "pays"), [(0.9, False), (1.05, True)])
def test_a_quarter_of_slower_runs_is_too_many(slowest: float, pays: bool, benchmark: Any) -> None:
    class Slow(Script):
        def run(self, engine: Any, request: Any, draft: Any, num_speculative_tokens: int | None) -> DraftRun:
            speedup = slowest if request.prompt_ids[0] < 3 else 1.3
            return DraftRun(list(range(11)), 10.0 if draft is None else 10.0 / speedup, [1], [1])

    (record,) = benchmark(Slow(), [[1], [2], [3], [4], [5]]).run([EXIT])
    assert record.pays is pays


def test_few_runs_confirm_nothing(benchmark: Any) -> None:
    (record,) = benchmark(Script(), [[1], [2]]).run([EXIT])
    assert record.lower_quartile > 2
    assert not record.pays


def test_texts_that_end_too_soon_are_not_timed(benchmark: Any) -> None:
    with pytest.raises(SearchError, match=r"too soon to time.*--text"):
        benchmark(Script(tokens=3)).run([EXIT])


def test_no_two_configurations_have_the_same_key() -> None:
    small = DraftConfig(Candidate("early-exit", EXIT.candidate.plan, 100), 2)
    assert len({EXIT.key, ADAPTIVE.key, small.key}) == 3
