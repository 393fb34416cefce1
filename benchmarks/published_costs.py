"""The cost model against the published speeds of layer parallelism on two A100 (arXiv 2502.02790).

    python benchmarks/published_costs.py
    python benchmarks/published_costs.py --host here.yaml

needs no weights and no such hardware: the models are their configurations. `--host` is a profile that
`truedepth measure --profile` wrote on any machine: what PyTorch's operations take there on the host is one more
assumption about launches. Prints a table for each published figure, and writes `published_costs.json` beside this file.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from truedepth.hardware.prediction import predict
from truedepth.hardware.profile import Figure, Hardware, load_hardware
from truedepth.methods import build_method
from truedepth.methods.base import LayerMethod

HARDWARE = ("a100-nvlink-x2", "a100-pcie-x2")
"""The paper says two A100 SXM4 80GB; the other link shows what the link is worth."""

CONTEXT = 2048
"""Assumption: the mean over the generation of 4096 tokens that the paper times."""


@dataclass(frozen=True)
class Published:
    """A published speedup.

    Attributes:
        config: the model's configuration, from its `config.json`.
        end, delta: of the layer-parallel method.
        ratios: published speedups, by what they are of.
    """

    model: str
    config: dict[str, Any]
    end: int
    delta: int
    ratios: dict[str, float]


PUBLISHED = (
    Published(
        "Llama 2 7B",
        {
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": False,
        },
        end=28,
        delta=14,
        ratios={"throughput": 1.19, "single stream, at best": 1.29},
    ),
    Published(
        "Llama 3.2 3B",
        {
            "vocab_size": 128256,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 28,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": True,
        },
        end=25,
        delta=10,
        ratios={"throughput": 1.22},
    ),
)

LAUNCHES = ("kernels_per_layer", "kernel_launch_seconds")
LATENCY = ("all_reduce_latency_seconds",)
ASSUMPTIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("CUDA graphs", "cuda-graphs", ()),
    ("CUDA graphs, slow all-reduces", "cuda-graphs", LATENCY),
    ("one by one", "eager", ()),
    ("one by one, slow all-reduces", "eager", LATENCY),
    ("one by one, slow launches", "eager", LAUNCHES),
    ("one by one, both slow", "eager", (*LAUNCHES, *LATENCY)),
)
"""What is assumed, in words; the profile's stack; its figures that are taken at the high end of their range."""


def with_figures(hardware: Hardware, figures: dict[str, Figure]) -> Hardware:
    """The hardware with other figures in its stack."""
    stack = hardware.profile.stacks[hardware.stack].model_copy(update=figures)
    profile = hardware.profile.model_copy(update={"stacks": {hardware.stack: stack}})
    return Hardware(hardware.name, profile, hardware.devices, hardware.stack)


def assumed(name: str, host: Path | None) -> dict[str, Hardware]:
    """The hardware under every assumption, by its words."""
    found = {}
    for words, stack, high in ASSUMPTIONS:
        hardware = load_hardware(f"{name}:{stack}")
        figures = {field: getattr(hardware.profile.stacks[stack], field) for field in high}
        ends = {field: figure.model_copy(update={"value": figure.at("high")}) for field, figure in figures.items()}
        found[words] = with_figures(hardware, ends)
    if host is not None:
        own = load_hardware(str(host))
        measured = own.profile.stacks[own.stack]
        fields = ("kernels_per_layer", "kernels_outside", "kernel_launch_seconds")
        here = {field: getattr(measured, field) for field in fields}
        found["one by one, launches as on this host"] = with_figures(load_hardware(f"{name}:eager"), here)
    return found


def judge(published: Published, host: Path | None) -> dict[str, Any]:
    """Predictions of one model's speedup under every assumption."""
    with torch.device("meta"):
        shapes = LlamaForCausalLM(LlamaConfig(**published.config))
    layers = published.config["num_hidden_layers"]
    method = build_method("layer-parallel", {"end": published.end, "delta": published.delta})
    if not isinstance(method, LayerMethod):
        raise TypeError("layer-parallel needs no evidence")
    plan = method.plan(layers)
    rows = []
    for name in HARDWARE:
        for words, hardware in assumed(name, host).items():
            decode = predict(shapes, hardware, {"plan": plan}, context=CONTEXT).plans
            whole, own = decode["unmodified"].decode, decode["plan"].decode
            stack = hardware.profile.stacks[hardware.stack]
            latency = stack.all_reduce_latency_seconds
            rows.append(
                {
                    "hardware": name,
                    "assumption": words,
                    "launches_per_layer_seconds": stack.kernels_per_layer.value * stack.kernel_launch_seconds.value,
                    "all_reduce_latency_seconds": latency.value if latency else None,
                    "unmodified_tokens_per_second": whole.tokens_per_second.value,
                    "overhead_share": 1 - (whole.parts.reading + whole.parts.computing) / whole.seconds.value,
                    "speedup": asdict(own.speedup),
                    "error": {what: own.speedup.value / ratio - 1 for what, ratio in published.ratios.items()},
                }
            )
    return {
        "model": published.model,
        "plan": plan.to_dict(),
        "published": published.ratios,
        "limit": layers / plan.effective_depth,
        "context": CONTEXT,
        "batch": 1,
        "rows": rows,
    }


def table(found: dict[str, Any]) -> Table:
    """One model's predictions."""
    published = ", ".join(f"{what} {ratio:.2f}x" for what, ratio in found["published"].items())
    stages, layers = found["plan"]["effective_depth"], found["plan"]["num_layers"]
    drawn = Table(
        title=f"{found['model']}, {stages} of {layers} stages; published: {published}",
        caption=f"If a step were launches and all-reduces only: {found['limit']:.2f}x. Batch 1, context {CONTEXT}.",
    )
    for title in ("hardware", "launches and all-reduces", "µs a layer", "µs an all-reduce", "tokens/s"):
        drawn.add_column(title, justify="left" if title in ("hardware", "launches and all-reduces") else "right")
    for title in ("not reading", "speedup", *(f"off {what}" for what in found["published"])):
        drawn.add_column(title, justify="right")
    for row in found["rows"]:
        speedup = row["speedup"]
        drawn.add_row(
            row["hardware"],
            row["assumption"],
            f"{1e6 * row['launches_per_layer_seconds']:.0f}",
            f"{1e6 * row['all_reduce_latency_seconds']:.0f}",
            f"{row['unmodified_tokens_per_second']:.0f}",
            f"{row['overhead_share']:.0%}",
            f"{speedup['value']:.2f} ({speedup['low']:.2f} to {speedup['high']:.2f})",
            *(f"{error:+.1%}" for error in row["error"].values()),
        )
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, help="a profile that truedepth measure --profile wrote")
    arguments = parser.parse_args()
    found = [judge(published, arguments.host) for published in PUBLISHED]
    console = Console(width=150)
    for model in found:
        console.print(table(model))
    target = Path(__file__).with_suffix(".json")
    target.write_text(json.dumps({"models": found}, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
