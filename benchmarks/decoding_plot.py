"""The comparison of `decoding.py` as a page: one chart a model and batch size."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

COLOURS = {"truedepth": "#0f8a7e", "transformers": "#c96a1c", "llama.cpp": "#7d8891"}

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1d2327; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 0; } p { margin: .3rem 0; } .facts { color: #5a666e; }
table { border-collapse: collapse; margin: .5rem 0 1rem; font-size: 13px; } td, th { padding: .15rem .7rem; }
td { text-align: right; border-top: 1px solid #e2e6e9; } td:first-child, th:first-child { text-align: left; }
"""


def page(record: Mapping[str, Any]) -> str:
    """A page that needs no other file."""
    machine = record["machine"]
    parts = [
        "<h1>Decoding compared</h1>",
        f"<p class=facts>{html.escape(machine['processor'])}, {machine['threads']} threads, "
        f"torch {html.escape(machine['torch'])}, transformers {html.escape(machine['transformers'])}. "
        "Greedy decoding; entrants took turns. Bars are medians of the rounds, lines from the slowest to the "
        "fastest round. The dotted line is what memory bandwidth allows a decoder that reads all float32 weights "
        "once a token.</p>",
    ]
    library: str | bool = "inline"
    for model in record["models"]:
        for run in model["runs"]:
            parts.append(f"<h2>{html.escape(_title(model, run))}</h2>")
            chart = decode_chart(run)
            parts.append(chart.to_html(full_html=False, include_plotlyjs=library, config={"displayModeBar": False}))
            parts.append(_table(run))
            library = False
        parts += [
            f"<p class=facts>Left out: {html.escape(name)}: {html.escape(reason)}.</p>"
            for name, reason in model["left_out"].items()
        ]
    body = "\n".join(parts)
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>Decoding compared</title><style>{_STYLE}</style><body>{body}</body></html>\n"
    )


def decode_chart(run: Mapping[str, Any]) -> go.Figure:
    """Tokens a second of each entrant as bars, the fastest on top."""
    ranked = sorted(run["entrants"].items(), key=lambda item: item[1]["decode_tokens_per_second"]["median"])
    speeds = [found["decode_tokens_per_second"] for _, found in ranked]
    figure = go.Figure(
        go.Bar(
            x=[speed["median"] for speed in speeds],
            y=[html.escape(name) for name, _ in ranked],
            orientation="h",
            marker={"color": [COLOURS[found["family"]] for _, found in ranked]},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [speed["high"] - speed["median"] for speed in speeds],
                "arrayminus": [speed["median"] - speed["low"] for speed in speeds],
                "color": "#1d2327",
                "thickness": 1,
                "width": 3,
            },
            text=[f"<b>{speed['median']:.1f}</b>" for speed in speeds],
            textposition="inside",
            insidetextanchor="start",
            hovertext=[_hover(found) for _, found in ranked],
            hovertemplate="%{y}<br>%{hovertext}<extra></extra>",
        )
    )
    figure.add_vline(x=_limit(run), line={"width": 1.5, "dash": "dot", "color": "#5a666e"})
    figure.update_layout(
        template="none",
        height=90 + 30 * len(ranked),
        margin={"l": 10, "r": 20, "t": 10, "b": 45},
        bargap=0.25,
        xaxis={"title": {"text": "tokens per second"}, "rangemode": "tozero", "gridcolor": "#e2e6e9"},
        yaxis={"automargin": True, "ticks": "", "ticksuffix": "  "},
        dragmode=False,
        font={"size": 13},
    )
    return figure


def _title(model: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    millions = round(model["parameters"] / 1e6)
    return f"{model['model']} ({millions} million parameters, {model['layers']} layers), batch {run['batch']}"


def _limit(run: Mapping[str, Any]) -> float:
    """Tokens a second at which float32 weights and caches can be read."""
    widest = max(found["bytes_per_token"] for found in run["entrants"].values())
    return float(run["bandwidth_bytes_per_second"] / widest)


def _hover(found: Mapping[str, Any]) -> str:
    parts = [
        f"{found['share_of_bandwidth_limit']:.0%} of its bandwidth limit",
        f"first token after {1000 * found['time_to_first_token_seconds']['median']:.0f} ms",
    ]
    if found["acceptance"] is not None:
        parts.append(f"{found['acceptance']:.0%} of drafted tokens accepted")
    return "<br>".join(parts)


def _table(run: Mapping[str, Any]) -> str:
    heads = (
        "",
        "tokens/s",
        "first token",
        "accepted",
        "tokens a pass",
        "of limit",
        "x transformers",
        "x plain",
    )
    rows = ["<tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"]
    for name, found in run["entrants"].items():
        cells = (
            html.escape(name),
            f"{found['decode_tokens_per_second']['median']:.1f}",
            f"{1000 * found['time_to_first_token_seconds']['median']:.0f} ms",
            "" if found["acceptance"] is None else f"{found['acceptance']:.0%}",
            f"{found['tokens_per_pass']:.2f}",
            f"{found['share_of_bandwidth_limit']:.0%}",
            _times(found["ratio_to_best_plain_of_transformers"]),
            _times(found["ratio_to_plain_truedepth"]),
        )
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table>{''.join(rows)}</table>"


def _times(spread: Mapping[str, float] | None) -> str:
    return "" if spread is None else f"{spread['median']:.2f}"
