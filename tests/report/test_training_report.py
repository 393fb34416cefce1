"""The report and the table of a training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from truedepth.errors import TruedepthError
from truedepth.report import results_table
from truedepth.report.training.charts import thinned
from truedepth.training.results import TRAINING_FILE, TrainingResults


def record(step: int, **values: float) -> dict[str, Any]:
    return {"step": step, "epoch": step / 10, "seconds": 2.5 * step, "values": values}


def judged(step: int, share: float) -> dict[str, Any]:
    return record(
        step,
        eval_loss=5 - share,
        eval_loss_exit_3=4.5 - share,
        eval_loss_exit_12=3 - share / 10,
        eval_agreement_exit_3=share / 2,
        eval_agreement_exit_12=1.0,
    )


ROWS: dict[str, Any] = {"sources": ["chat.jsonl"], "items": 812, "rows": 96, "tokens": 49_000, "loss_tokens": 21_000}
SAMPLE: dict[str, Any] = {
    "truedepth_version": "0.1.0",
    "created": "2026-03-14T09:26:00+00:00",
    "seconds": 1510.0,
    "kind": "layerskip",
    "recipe": {"kind": "layerskip", "batch": 8, "data": {"length": 512}, "note": "<script>alert(1)</script>"},
    "model": {
        "name": "test-data/sample-12-layers",
        "family": "llama",
        "num_layers": 12,
        "parameters": 1_000_000,
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
    "ranks": 1,
    "trained_parameters": 250_000,
    "steps": 20,
    "train": ROWS,
    "held_out": {**ROWS, "items": 40},
    "history": [
        judged(0, 0.1),
        record(10, loss=4.2, loss_exit_3=4.4, tokens_per_second=810.0),
        judged(10, 0.5),
        record(20, loss=3.9, loss_exit_3=4.0, tokens_per_second=830.0),
        judged(20, 0.9),
    ],
    "product": {
        "description": "The trained model",
        "path": "model",
        "figures": {"perplexity of test text": 14.86},
        "commands": [["Write with it", "truedepth generate run/model --draft exit:3"]],
    },
}


def results(**changes: Any) -> TrainingResults:
    return TrainingResults.model_validate({**SAMPLE, **changes})


Read = Callable[[TrainingResults], Any]


class TestPage:
    def test_says_what_became_of_it(self, read: Read) -> None:
        text = read(results()).text
        assert (
            "12-layers was trained for 20 steps (layerskip): its loss on held-out text went from 4.90 to 4.10." in text
        )
        assert "after 3 of 12 layers 5 % before and 45 % after" in text
        assert "exit 3 4.400 → 3.600 5.0 % → 45.0 %" in text
        assert "last layer 2.990 → 2.910 100.0 % → 100.0 %" in text
        assert "25 min 10 s" in text and "Trained 25 % 250,000 parameters" in text and "Tokens a second 830" in text
        assert "The trained model, in model . perplexity of test text 14.86" in text
        assert "truedepth generate run/model --draft exit:3" in text
        assert "812" in text and "49,000, of which 21,000 are trained on" in text and "Example processor" in text

    def test_charts(self, read: Read) -> None:
        losses, agreement = read(results()).charts
        lines = {(trace.name, trace.line.dash): (list(trace.x), list(trace.y)) for trace in losses.data}
        assert lines["loss of the training", "dot"] == ([10, 20], [4.2, 3.9])
        assert lines["loss of the training", None] == ([0, 10, 20], [4.9, 4.5, 4.1])
        assert lines["exit 3", None][1] == pytest.approx([4.4, 4.0, 3.6])
        assert lines["last layer", None][1] == pytest.approx([2.99, 2.95, 2.91])
        assert [trace.name for trace in losses.data if trace.showlegend is not False] == [
            "loss of the training",
            "exit 3",
            "last layer",
        ]
        assert {trace.name: list(trace.y) for trace in agreement.data}["exit 3"] == pytest.approx([0.05, 0.25, 0.45])

    def test_without_held_out_text_or_exits(self, read: Read) -> None:
        history = [record(10, loss=4.2), record(20, loss=3.9)]
        page = read(results(history=history, held_out=None))
        assert "its loss on training text went from 4.20 to 3.90" in page.text
        assert len(page.charts) == 1
        assert "Agreement over time" not in page.text

    def test_a_weighted_sum_is_no_loss_of_a_token(self, read: Read) -> None:
        assert "nats a token" in read(results()).text
        figures = {"eval_loss": 6.1, "eval_loss_position_1": 3.0, "eval_loss_position_2": 3.9}
        page = read(results(history=[record(0, **figures), record(20, **figures)]))
        assert "held-out text, weighted sum of the drafted positions" in page.text

    def test_nothing_was_logged(self, read: Read) -> None:
        text = read(results(history=[], steps=1)).text
        assert "was trained for one step (layerskip)." in text and "not a number" in text

    def test_a_recipe_stays_text(self, read: Read) -> None:
        page = read(results())
        assert "<script>alert(1)" not in page.source and "<script>alert(1)" in page.text


def test_long_lines_are_thinned() -> None:
    points = [(step, float(step % 2)) for step in range(5001)]
    found = thinned(points)
    assert len(found) == 300 and found[0] == points[0] and found[-1] == points[-1]
    assert all(0.4 < value < 0.6 for _, value in found[1:-1])
    assert [step for step, _ in found] == sorted({step for step, _ in found})
    assert thinned(points[:300]) == points[:300]


def test_table_in_a_terminal(drawn: Any) -> None:
    lines = [line.split() for line in drawn(results_table(results()))]
    assert ["exit", "3", "4.40", "to", "3.60", "5", "%", "to", "45", "%"] in lines
    assert ["It", "took", "25", "min", "10", "s."] in lines


class TestResults:
    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / TRAINING_FILE
        diverged = [*SAMPLE["history"], record(21, loss=float("inf"))]
        path.write_text(results(history=diverged).model_dump_json())
        assert TrainingResults.load(path) == results(history=diverged)

    @pytest.mark.parametrize(
        ("text", "said"),
        [("{", "is not JSON"), ('{"steps": 3}', "is not a training-results.json of schema 2")],
    )
    def test_what_is_none_is_refused(self, text: str, said: str, tmp_path: Path) -> None:
        path = tmp_path / TRAINING_FILE
        path.write_text(text)
        with pytest.raises(TruedepthError, match=said):
            TrainingResults.load(path)
