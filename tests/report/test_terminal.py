import json
from pathlib import Path
from typing import Any

import pytest

from truedepth.plan import DepthPlan
from truedepth.report import draw_plan, results_table
from truedepth.search.plan_results import Results

SAMPLE = json.loads((Path(__file__).parent / "sample_results.json").read_text(encoding="utf-8"))


def test_stages_in_order_with_groups_stacked_and_skipped_layers_struck(drawn: Any) -> None:
    assert drawn(draw_plan(DepthPlan.parse("0 1 (2|3) 5 (6+7)", 8))) == [
        "[ 0][ 1]╭ 2╮╌ 4╌[ 5]╔ 6╗",
        "        ╰ 3╯        ╚ 7╝",
        "[n] runs alone   ╭n╮╰n╯ side by side   ╔n╗╚n╝ merged into one   ╌n╌ skipped",
        "7 of 8 layers in 5 stages, form lp",
    ]


def test_the_legend_has_only_what_is_drawn(drawn: Any) -> None:
    assert drawn(draw_plan(DepthPlan.full(4))) == ["[ 0][ 1][ 2][ 3]", "[n] runs alone", "all 4 layers"]


def test_a_wide_group_grows_columns(drawn: Any) -> None:
    assert drawn(draw_plan(DepthPlan.parse("(0|1|2|3|4|5)", 6)))[:4] == [
        "╭ 0  4╮",
        "│ 1  5│",
        "│ 2   │",
        "╰ 3   ╯",
    ]


def test_a_full_prefill_is_said(drawn: Any) -> None:
    assert "the prompt runs every layer" in drawn(draw_plan(DepthPlan.of_layers([0, 2], 3, "full")))[-1]


def test_a_terminal_without_unicode_gets_ascii(drawn: Any) -> None:
    lines = drawn(draw_plan(DepthPlan.parse("0 1 (2|3) 5 (6+7)", 8)), encoding="ascii")
    assert lines[:2] == ["[ 0][ 1]/ 2\\- 4-[ 5]+ 6+", "        \\ 3/        + 7+"]


@pytest.mark.parametrize("num_layers", [30, 32, 80, 126])
@pytest.mark.parametrize("width", [40, 80, 120])
def test_fits_the_terminal_and_shows_every_layer(drawn: Any, num_layers: int, width: int) -> None:
    pairs = " ".join(f"({layer}|{layer + 1})" for layer in range(8, num_layers - 4, 2))
    plan = DepthPlan.parse(f"0-6 {pairs} {num_layers - 2} {num_layers - 1}", num_layers)
    lines = drawn(draw_plan(plan), width)
    assert max(map(len, lines)) <= width
    drawing = "\n".join(lines[: next(i for i, line in enumerate(lines) if line.startswith("[n]"))])
    for sign in "[]╭╮╰╯╌":
        drawing = drawing.replace(sign, " ")
    assert sorted(map(int, drawing.split())) == list(range(num_layers))


def test_the_table_has_every_row_and_fits_80_columns(drawn: Any) -> None:
    lines = drawn(results_table(Results.model_validate(SAMPLE)))
    assert max(map(len, lines)) <= 80
    rows = {line.split("  ")[0]: line.split() for line in lines}
    assert " ".join(rows["this plan"]) == "this plan 28 25 1.27x 19.41 0.313 71.4 %"
    assert " ".join(rows["unmodified"]) == "unmodified 30 30 1.00x 14.86 0 100.0 %"
    assert " ".join(rows["unified-skipping"]) == "unified-skipping 24 24 ~1.25x 2,917 5.87 6.4 %"
    assert "~ predicted by the cost model, not measured" in lines


def test_the_table_says_what_was_found_and_what_it_cost(drawn: Any) -> None:
    text = " ".join(" ".join(drawn(results_table(Results.model_validate(SAMPLE)))).split())
    assert "decodes 1.27 times as fast" in text
    assert SAMPLE["cost"]["note"] in text


def test_names_are_not_read_as_markup(drawn: Any) -> None:
    results = Results.model_validate({**SAMPLE, "model": {**SAMPLE["model"], "name": "[red]name[/red]"}})
    assert "[red]name[/red]" in " ".join(drawn(results_table(results)))


def test_infinite_perplexity_is_readable(drawn: Any) -> None:
    peers = [{**SAMPLE["peers"][0], "perplexity": float("inf"), "kl": float("inf")}]
    assert any("infinite" in line for line in drawn(results_table(Results.model_validate({**SAMPLE, "peers": peers}))))
