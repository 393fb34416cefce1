"""The report and the table of a search for a draft."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from truedepth.errors import TruedepthError
from truedepth.report import results_table
from truedepth.search.draft_results import LOSSLESS_FILE, LosslessResults


def draft(
    notation: str, exit_: int | None, vocabulary: int | None = None, method: str = "early-exit"
) -> dict[str, Any]:
    return {
        "method": method,
        "notation": notation,
        "num_layers": 12,
        "form": "lp",
        "exit": exit_,
        "vocabulary": vocabulary,
    }


def candidate(which: dict[str, Any], agreement: float, break_even: float | None, speed: float) -> dict[str, Any]:
    speculation = [
        {"num_speculative_tokens": 1, "accepted": 0.71, "tokens_per_second": speed - 2},
        {"num_speculative_tokens": 4, "accepted": 2.11, "tokens_per_second": speed},
    ]
    return {"draft": which, "agreement": agreement, "break_even": break_even, "speculation": speculation}


def timed(
    which: dict[str, Any], speedup: float, lower_quartile: float, num_speculative_tokens: int | None = 4
) -> dict[str, Any]:
    return {
        "draft": which,
        "num_speculative_tokens": num_speculative_tokens,
        "speedup": speedup,
        "low": speedup - 0.21,
        "lower_quartile": lower_quartile,
        "high": speedup + 0.17,
        "plain_tokens_per_second": 40.6,
        "tokens_per_second": 40.6 * speedup,
        "rounds": 100,
        "drafted": 400,
        "accepted": 292,
        "acceptance_by_position": [0.93, 0.77, 0.66, 0.54],
        "runs": 8,
        "same_texts": 7,
    }


SMALL, EXIT, SKIP = draft("0-2", 3, 512), draft("0-2", 3), draft("0-5 8-11", None, None, "greedy-removal")
SAMPLE: dict[str, Any] = {
    "truedepth_version": "0.1.0",
    "created": "2026-03-14T09:26:00+00:00",
    "seconds": 151.0,
    "model": {
        "name": "test-data/sample-12-layers",
        "family": "llama",
        "num_layers": 12,
        "parameters": 1234567,
        "dtype": "float32",
        "device": "cpu",
    },
    "machine": {
        "processor": "Example processor (test data)",
        "cores": 2,
        "memory_bytes": 16_800_000_000,
        "device": "cpu",
        "bandwidth_bytes_per_second": 28.1e9,
        "torch": "2.13.0",
        "transformers": "5.23.0",
        "threads": 2,
    },
    "pays": True,
    "best": timed(SMALL, 1.53, 1.41),
    "finalists": [timed(SMALL, 1.49, 1.4), timed(SKIP, 1.02, 0.98)],
    "final": [timed(SMALL, 1.53, 1.41), timed(SMALL, 1.47, 1.3, None)],
    "candidates": [
        candidate(SMALL, 0.79, 0.42, 61.0),
        candidate(EXIT, 0.81, 0.52, 57.0),
        candidate(SKIP, 0.92, 0.88, 43.0),
        candidate(draft("0-10", 11), 0.66, None, 31.0),
        candidate(draft("0-10", 11, 512), 0.61, 0.97, 30.0),
    ],
    "aim": {"exit": 3, "vocabulary": 512, "break_even": 0.42},
    "costs": {
        "num_layers": 12,
        "begin_seconds": 0.0002,
        "layer_seconds": {"1": 0.0017, "2": 0.0018, "5": 0.002},
        "head_seconds": {"1": 0.0036, "2": 0.0037, "5": 0.004},
        "draft_head_seconds": {"512": 0.0003},
        "pair_seconds": {"lp": 0.0034},
    },
    "text": {
        "source": "mine.txt",
        "calibration_tokens": 1024,
        "validation_tokens": 512,
        "test_tokens": 1024,
    },
}
FAILED = timed(EXIT, 0.84, 0.8)
NOT_PAYING = {"pays": False, "best": FAILED, "finalists": [], "final": [FAILED, timed(EXIT, 0.99, 0.97, None)]}


def results(**changes: Any) -> LosslessResults:
    return LosslessResults.model_validate({**SAMPLE, **changes})


@pytest.fixture
def report(read: Callable[[LosslessResults], Any]) -> Any:
    """`report(key=value, ...)`: the report on the sample results with these replaced."""
    return lambda **changes: read(results(**changes))


def test_rounding_is_told(report: Any) -> None:
    text = report(rounding="products on cuda are PyTorch's").text
    assert "and writes the same up to rounding." in text
    assert "Where two tokens are nearly equally likely, either may be written: products on cuda are PyTorch's." in text


def test_what_pays_is_told_with_its_figures(report: Any) -> None:
    text = report().text
    for said in (
        "test-data/sample-12-layers decodes 1.53 times as fast with a draft, and writes the same.",
        "Drafting 4 tokens at a time with the first 3 layers, limited to 512 tokens of the vocabulary, and verifying",
        "1.53x (1.32 to 1.70 from run to run, three of four above 1.41)",
        "73 % of the drafted tokens were accepted",
        "40.6 → 62.1",
        "exit:3 0-2 512 79.0 % 42 % 4 2.11 61.0",
        "greedy-removal, 10 layers 0-5 8-11 all 92.0 % 88 %",
        "exit:11 0-10 all 66.0 % never",
        "7 of 8",
        "93 %, 77 %, 66 %, 54 %",
        "20.4 ms",
        "14 March 2026, 09:26 UTC",
        "Example processor (test data)",
        "mine.txt",
    ):
        assert said in text, said
    assert "Train the model's exits" not in text


def test_commands_name_the_run_its_vocabulary_and_its_length(report: Any, tmp_path: Path) -> None:
    run = tmp_path.as_posix()
    options = f"--draft {run} --draft-length 4"
    assert f"truedepth generate test-data/sample-12-layers {options} " in report().text
    adaptive = report(best=timed(EXIT, 1.5, 1.4, None)).text
    assert f"generate test-data/sample-12-layers --draft {run} --prompt" in adaptive


def test_where_nothing_pays_the_page_says_why_and_recommends_nothing(report: Any) -> None:
    text = report(**NOT_PAYING).text
    assert "No draft pays for test-data/sample-12-layers on this machine." in text
    assert "0.84x" in text
    assert "It agrees with the model at 81 % of the places; from 52 % on it should pay" in text
    assert "one after 3 of the 12 layers would pay from 42 % on" in text
    assert "truedepth generate" not in text


def test_what_can_never_pay_is_said(report: Any) -> None:
    never = candidate(EXIT, 0.81, None, 20.0)
    aim = {"exit": 3, "vocabulary": None, "break_even": None}
    text = report(**NOT_PAYING, candidates=[never], aim=aim).text
    assert "would not pay even if all of its tokens were accepted" in text
    assert "verifying several tokens costs too much here" in text


def test_charts_have_exits_other_plans_and_what_was_timed(report: Any) -> None:
    speed, agreement = report().charts
    traces = {trace.name: trace for trace in speed.data if trace.name != "timed"}
    assert list(traces["best length"].x) == [3, 11]
    assert list(traces["best length"].y) == [61.0, 31.0]  # with the vocabulary that is best for each
    assert list(traces["1 drafted"].y) == [59.0, 29.0]
    assert list(traces["other plans"].x) == [10]
    stars = [trace for trace in speed.data if trace.name == "timed"]
    assert sorted((trace.x[0], round(trace.y[0], 1)) for trace in stars) == [(3, 62.1), (10, 41.4)]
    assert traces["plain, timed"].y[0] == 40.6
    lines = {trace.name: trace for trace in agreement.data}
    assert list(lines["exits"].y) == [0.81, 0.66]
    assert list(lines["exits, 512 tokens"].y) == [0.79, 0.61]
    assert list(lines["exits would pay from"].y) == [0.42, 0.97]  # the lower of the two vocabularies


def test_hostile_names_stay_text(report: Any) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'{{7*7}}"
    page = report(
        model={**SAMPLE["model"], "name": evil},
        candidates=[
            *SAMPLE["candidates"],
            candidate(draft("0-4 6-11", None, None, evil), 0.5, 0.9, 33.0),
        ],
        created=evil,
    )
    assert "<script>alert" not in page.source and "<img" not in page.source
    assert page.text.count(evil) >= 3
    for figure in page.charts:
        assert all("<img" not in str(trace.hovertemplate) for trace in figure.data)


def test_the_table_fits_eighty_columns(drawn: Any) -> None:
    lines = drawn(results_table(results()))
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines]
    assert ["exit:3", "3", "512", "79", "%", "42", "%", "4", "62.1", "1.53x"] in rows
    assert ["greedy-removal", "10", "all", "92", "%", "88", "%", "4", "41.4", "1.02x"] in rows
    assert any(row[:2] == ["exit:11", "11"] and row[-1].startswith("~") for row in rows)
    assert "No draft pays" in " ".join(drawn(results_table(results(**NOT_PAYING))))


def test_results_read_back_and_others_are_refused(tmp_path: Path) -> None:
    file = tmp_path / LOSSLESS_FILE
    file.write_text(results().model_dump_json(), encoding="utf-8")
    assert LosslessResults.load(file) == results()
    file.write_text('{"schema_version": 1}', encoding="utf-8")
    with pytest.raises(TruedepthError, match=r"lossless\.json is not a lossless\.json of schema 2"):
        LosslessResults.load(file)
    with pytest.raises(TruedepthError, match="cannot read"):
        LosslessResults.load(tmp_path / "missing.json")
