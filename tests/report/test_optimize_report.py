"""The report of the main job."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from truedepth.errors import OutputError
from truedepth.plan import DepthPlan
from truedepth.report import write_report
from truedepth.report.format import TIMES_SIGN
from truedepth.search.plan_results import Results

SAMPLE: dict[str, Any] = json.loads((Path(__file__).parent / "sample_results.json").read_text(encoding="utf-8"))


@pytest.fixture
def report(read: Callable[[Results], Any]) -> Any:
    """`report(key=value, ...)`: the report on the sample results with these replaced."""
    return lambda **changes: read(Results.model_validate({**SAMPLE, **changes}))


def test_every_figure_is_there(report: Any) -> None:
    page = report()
    for said in (
        "test-data/sample-30-layers decodes 1.27 times as fast with 28 of 30 layers in 25 stages.",
        "You asked for 1.25 times the decoding speed.",
        "1.24 to 1.30 from run to run",
        "Perplexity goes from 14.86 to 19.41 (1.31x).",
        "71 % of the tokens",
        "0.313",
        "27.9 tokens/s 35.4 tokens/s 1.27x",
        "312 tokens/s 372 tokens/s 1.19x",
        "410 ms 344 ms 0.84x",
        "538 MB 510 MB 0.95x",
        "53 % 64 %",
        "6.41 ms",
        "980 µs",
        "1.21 ms",
        "1.17 ms",
        SAMPLE["cost"]["note"],
        "Example processor (test data)",
        "2 (2 threads used)",
        "16.8 GB, read at 28.1 GB/s",
        "torch 2.13.0, transformers 5.23.0",
        "134,515,008",
        "float32 on cpu",
        SAMPLE["text"]["source"],
        "8,192 tokens",
        "14 March 2026, 09:26 UTC",
        "4 min 47 s",
    ):
        assert said in page.text, said


def test_the_table_has_the_model_the_plan_and_every_method(report: Any) -> None:
    page = report()
    assert "unmodified 0-29 30 30 1.00x 14.86 0 100.0 %" in page.text
    assert f"this plan {SAMPLE['plan']['notation']} · form par 28 25 1.27x 19.41 0.313 71.4 %" in page.text
    for peer in SAMPLE["peers"]:
        assert f"{peer['method']} {peer['notation']}" in page.text
    assert "~1.25x 2,917 5.87 6.4 %" in page.text
    assert "· prompt runs every layer" in page.text
    for point in SAMPLE["frontier"]:
        assert point["notation"] in page.codes


def test_the_drawing_shows_what_happens_to_each_layer(report: Any) -> None:
    page = report()
    tips = dict(enumerate(tip for _, tip in page.cells))
    assert len(tips) == 30
    assert tips[0] == "layer 0: runs alone\ninfluence 0.412"
    assert tips[10] == "layer 10: side by side\ninfluence 0.0470"
    assert tips[25] == "layer 25: skipped\ninfluence 0.0290"
    merged = report(plan=DepthPlan.parse("0-9 (10+11) 12-29", 30).to_dict())
    assert "layer 11: merged into one" in "".join(tip for _, tip in merged.cells)
    assert "Layers in a double frame are merged" in merged.text


def test_the_frontier_has_the_path_the_plan_and_the_methods(report: Any) -> None:
    frontier = report().charts[0]
    path = frontier.data[0]
    assert list(path.x) == [point["speedup"] for point in SAMPLE["frontier"]]
    assert path.y[0] == 1.0  # relative to the unmodified model on the same validation text
    assert path.y[-1] == pytest.approx(26.8 / 15.21)
    points = {trace.name.partition(" ↑")[0]: trace for trace in frontier.data[1:]}
    assert set(points) == {"unmodified", "<b>this plan</b>", *(peer["method"] for peer in SAMPLE["peers"])}
    plan = points["<b>this plan</b>"]
    assert plan.x[0] == SAMPLE["speedup"]["measured"]
    assert SAMPLE["plan"]["notation"][:20] in plan.hovertemplate
    assert "perplexity 19.41" in plan.hovertemplate
    assert frontier.layout.yaxis.type == "log" and frontier.layout.showlegend
    assert all(trace.showlegend is not False for trace in frontier.data)


def test_a_method_far_off_lies_at_the_edge_of_the_chart_and_the_legend_has_its_figure(report: Any) -> None:
    near = {**SAMPLE["peers"][0], "method": "near"}
    values = (float("inf"), float("nan"), 1e30)
    page = report(peers=[near, *({**near, "method": f"far-{value}", "perplexity": value} for value in values)])
    points = {trace.name.replace(TIMES_SIGN, "x"): trace for trace in page.charts[0].data}
    far = [points["far-inf ↑ infinitex"], points["far-nan ↑ not a numberx"], points["far-1e+30 ↑ 6.7e28x"]]
    assert all(points["near"].y[0] < trace.y[0] < 10 and trace.marker.symbol == "triangle-up" for trace in far)
    assert "infinite" in page.text


def test_the_influence_of_each_layer_by_what_happens_to_it(report: Any) -> None:
    bars = {trace.name: trace for trace in report().charts[1].data}
    assert list(bars["side by side"].x) == [10, 11, 20, 21, 22, 23]
    assert list(bars["skipped"].x) == [25, 27]
    assert bars["skipped"].y[0] == SAMPLE["influence"][25]
    assert sum(len(trace.x) for trace in bars.values()) == 30


def test_one_layer_that_dwarfs_the_rest_makes_the_scale_logarithmic(report: Any) -> None:
    page = report(influence=[9.0, *SAMPLE["influence"][1:]])
    assert page.charts[1].layout.yaxis.type == "log"
    assert "logarithmic" in page.text


def test_it_is_one_file_of_some_megabytes_for_light_dark_paper_and_small_screens(tmp_path: Path) -> None:
    source = write_report(Results.model_validate(SAMPLE), tmp_path).read_text(encoding="utf-8")
    styles = "".join(re.findall(r"<style>(.*?)</style>", source, re.DOTALL))
    assert styles and "url(" not in styles and "@import" not in styles
    assert len(source.encode()) < 6_000_000
    assert source.count(get_plotlyjs()) == 1
    for rule in ("prefers-color-scheme: dark", "@media print", "max-width: 640px", 'name="viewport"'):
        assert rule in source


def test_sections_are_labelled_by_headings(report: Any) -> None:
    assert len(report().labels) >= 7


def test_commands_to_copy_name_the_model_and_the_plan(report: Any, tmp_path: Path) -> None:
    name = "models/it's here"
    codes = report(model={**SAMPLE["model"], "name": name}).codes
    plan = f"{tmp_path.as_posix()}/plan.yaml"
    assert f"truedepth measure 'models/it'\"'\"'s here' --plan {plan}" in codes
    assert f"truedepth show {plan}" in codes
    assert SAMPLE["plan"]["notation"] in codes


def test_hostile_names_stay_text(report: Any) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'{{7*7}}"
    page = report(
        model={**SAMPLE["model"], "name": evil},
        machine={**SAMPLE["machine"], "processor": evil},
        peers=[{**SAMPLE["peers"][0], "method": evil}],
        text={**SAMPLE["text"], "source": evil},
        cost={**SAMPLE["cost"], "source": evil, "note": evil},
        created=evil,
    )
    plain = report()
    assert "<script>alert" not in page.source and "<img" not in page.source
    assert page.text.count(evil) >= 6
    assert len(page.charts) == len(plain.charts)
    for trace in page.charts[0].data:
        assert "<img" not in f"{trace.name}{trace.hovertemplate}"


def test_a_run_for_other_hardware_has_no_speeds(report: Any) -> None:
    page = report(
        speedup={"target": None, "predicted": 1.31, "measured": None, "low": None, "high": None},
        target={"kind": "max_perplexity_ratio", "value": 1.5},
        base_speed=None,
        plan_speed=None,
        cost={**SAMPLE["cost"], "source": "two-example-gpus"},
    )
    assert "should decode 1.31 times as fast on two-example-gpus" in page.text
    assert "No speeds were measured" in page.text
    assert "~1.31x" in page.text
    assert page.charts[0].layout.shapes[0].y0 == 1.5


def test_a_bare_run_makes_a_page(report: Any) -> None:
    page = report(
        peers=[],
        frontier=[],
        influence=[],
        plan=DepthPlan.full(30).to_dict(),
        cost={**SAMPLE["cost"], "pair_seconds": {}},
    )
    assert "stays as it is" in page.text
    assert len(page.charts) == 1
    assert "Influence" not in page.text


def test_a_full_prefill_is_said(report: Any) -> None:
    page = report(plan=DepthPlan.of_layers(range(0, 30, 2), 30, "full").to_dict())
    assert "The prompt still runs every layer." in page.text
    assert "skipped while decoding" in page.text


@pytest.mark.parametrize("plan", [float("inf"), float("nan"), 1e300])
@pytest.mark.parametrize("base", [14.86, float("inf")])
def test_a_broken_plan_makes_a_page(report: Any, base: float, plan: float) -> None:
    page = report(perplexity={"base": base, "plan": plan}, kl=float("inf"), agreement=0.0)
    assert len(page.charts) == 2


def test_a_shuffled_plan_of_many_layers_makes_a_page(report: Any) -> None:
    plan = DepthPlan.parse("5-79 " + "(" + "|".join(map(str, range(1, 5))) + ") 0", 80)
    page = report(
        model={**SAMPLE["model"], "num_layers": 80},
        plan=plan.to_dict(),
        peers=[],
        frontier=[],
        influence=[0.1] * 80,
    )
    assert len(page.cells) == 80


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nowhere"):
        write_report(Results.model_validate(SAMPLE), tmp_path / "nowhere")
