"""The charts of the search for a draft."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from truedepth.report.charts import FOUND, PEER, ROLE_COLOURS, hover_text, new_chart
from truedepth.report.format import number, per_second, percent, times
from truedepth.report.lossless import labels

if TYPE_CHECKING:
    from truedepth.search.draft_results import CandidateRecord, LosslessResults, SpeculationRecord, TimedRecord

_LENGTHS = {1: "dot", 4: "dash", 8: "longdash"}
"""Lengths that have a line, and how it is drawn."""

_DASHES = ("solid", "dash", "dot")
"""Of the lines for the whole vocabulary and for smaller ones."""

_NEEDED = ROLE_COLOURS["parallel"]
_DRAFTED = ROLE_COLOURS["alone"]


def speed_chart(results: LosslessResults) -> go.Figure:
    """Tokens a second by the stages that the draft runs: expected lines for exits, and points that were timed."""
    figure = new_chart("stages that the draft runs", "tokens a second")
    figure.add_hline(y=1 / results.costs.plain_seconds(), line={"width": 1.5, "dash": "dot", "color": PEER})
    for length, dash in _LENGTHS.items():
        _add_exits(figure, results, f"{length} drafted", dash, length)
    _add_exits(figure, results, "best length", "solid", None)
    others = _others(results)
    if others:
        figure.add_trace(_other_points(others, [candidate.best.tokens_per_second for candidate in others]))
    for record in [*results.finalists, results.best]:
        if record is results.best or record.draft != results.best.draft:
            figure.add_trace(_timed_point(record, record is results.best))
    figure.add_trace(_plain_point(results))
    figure.update_yaxes(rangemode="tozero")
    return figure


def agreement_chart(results: LosslessResults) -> go.Figure:
    """Agreement by the stages that the draft runs: exits, by draft vocabulary, with what they would need to pay."""
    figure = new_chart("stages that the draft runs", "agreement with the model")
    for size, dash in zip([None, *sorted(results.costs.draft_head_seconds, reverse=True)], _DASHES, strict=False):
        title = "exits" if size is None else f"exits, {size:,} tokens"
        figure.add_trace(_agreement_line(_exits(results, size), title, dash))
    needed = _limits(results)
    if needed:
        figure.add_trace(_needed_line(needed))
    others = _others(results)
    if others:
        figure.add_trace(_other_points(others, [candidate.agreement for candidate in others]))
    figure.update_yaxes(range=[0, 1.03], tickformat=".0%")
    return figure


def _agreement_line(exits: Sequence[CandidateRecord], title: str, dash: str) -> go.Scatter:
    return go.Scatter(
        x=[candidate.draft.exit for candidate in exits],
        y=[candidate.agreement for candidate in exits],
        mode="lines+markers",
        name=title,
        line={"color": FOUND, "width": 2, "dash": dash},
        marker={"size": 5},
        hovertemplate=f"<b>exit:%{{x}}</b><br>{title}<br>agrees at %{{y:.0%}}<extra></extra>",
    )


def _needed_line(needed: Sequence[tuple[int, float]]) -> go.Scatter:
    return go.Scatter(
        x=[exit_ for exit_, _ in needed],
        y=[limit for _, limit in needed],
        mode="lines",
        name="exits would pay from",
        line={"color": _NEEDED, "width": 2},
        hovertemplate="<b>exit:%{x}</b><br>pays from %{y:.0%} on<extra></extra>",
    )


def _add_exits(figure: go.Figure, results: LosslessResults, title: str, dash: str, length: int | None) -> None:
    """The line of expected speeds of exits at one length, or each at its best: with the vocabulary that is best."""
    points: dict[int, tuple[CandidateRecord, SpeculationRecord]] = {}
    for candidate in results.candidates:
        exit_ = candidate.draft.exit
        for expected in candidate.speculation:
            if exit_ is None or length not in (None, expected.num_speculative_tokens):
                continue
            if exit_ not in points or expected.tokens_per_second > points[exit_][1].tokens_per_second:
                points[exit_] = (candidate, expected)
    found = [points[exit_] for exit_ in sorted(points)]
    figure.add_trace(
        go.Scatter(
            x=[candidate.draft.exit for candidate, _ in found],
            y=[expected.tokens_per_second for _, expected in found],
            mode="lines",
            name=title,
            line={"color": FOUND if length is None else _DRAFTED, "width": 3 if length is None else 1.5, "dash": dash},
            hovertemplate=[_hover(candidate, expected) for candidate, expected in found],
        )
    )


def _other_points(others: Sequence[CandidateRecord], values: Sequence[float]) -> go.Scatter:
    return go.Scatter(
        x=[candidate.draft.to_plan().effective_depth for candidate in others],
        y=values,
        mode="markers",
        name="other plans",
        marker={"color": PEER, "size": 8, "symbol": "diamond-open"},
        hovertemplate=[_hover(candidate, candidate.best) for candidate in others],
    )


def _timed_point(record: TimedRecord, is_best: bool) -> go.Scatter:
    figures = [
        f"{per_second(record.tokens_per_second)}, plain {per_second(record.plain_tokens_per_second)}",
        f"{times(record.speedup)}, {record.low:.2f} to {record.high:.2f}",
        labels.accepted(record),
    ]
    return go.Scatter(
        x=[record.draft.to_plan().effective_depth],
        y=[record.tokens_per_second],
        mode="markers",
        name="timed",
        showlegend=is_best,
        marker={"color": FOUND, "size": 19 if is_best else 11, "symbol": "star"},
        hovertemplate=hover_text(f"{labels.name(record.draft)}, timed", record.draft.notation, figures),
    )


def _plain_point(results: LosslessResults) -> go.Scatter:
    return go.Scatter(
        x=[results.model.num_layers],
        y=[results.best.plain_tokens_per_second],
        mode="markers",
        name="plain, timed",
        marker={"color": PEER, "size": 12, "symbol": "circle-open", "line": {"width": 2}},
        hovertemplate="<b>plain decoding, timed</b><br>%{y:.3~r} tokens/s<extra></extra>",
    )


def _hover(candidate: CandidateRecord, expected: SpeculationRecord) -> str:
    figures = [
        f"{per_second(expected.tokens_per_second)} expected",
        f"{expected.num_speculative_tokens} drafted, {number(expected.accepted)} accepted in a round",
        f"agrees at {percent(candidate.agreement)}, pays from {labels.share(candidate.break_even)}",
    ]
    return hover_text(labels.name(candidate.draft), candidate.draft.notation, figures)


def _others(results: LosslessResults) -> list[CandidateRecord]:
    """Plans that are no exits, each with the vocabulary that is best for it."""
    return [row.candidate for row in labels.rows(results) if row.candidate.draft.exit is None]


def _exits(results: LosslessResults, vocabulary: int | None) -> list[CandidateRecord]:
    """The exits with one size of vocabulary, the shallowest first."""
    found = [
        candidate
        for candidate in results.candidates
        if candidate.draft.exit is not None and candidate.draft.vocabulary == vocabulary
    ]
    return sorted(found, key=lambda candidate: candidate.draft.exit or 0)


def _limits(results: LosslessResults) -> list[tuple[int, float]]:
    """For each exit that can pay, the least agreement from which it does with one of the vocabularies."""
    limits: dict[int, float] = {}
    for candidate in results.candidates:
        exit_, limit = candidate.draft.exit, candidate.break_even
        if exit_ is not None and limit is not None:
            limits[exit_] = min(limit, limits.get(exit_, limit))
    return sorted(limits.items())
