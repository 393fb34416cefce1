"""Decoding in bfloat16: against float32, and against the rate at which the memory gives the weights.

    python benchmarks/bfloat16.py
    python benchmarks/bfloat16.py --large FILE.gguf

The embedded model decodes in both types, in turns. With --large, a model decodes in bfloat16 in turns with a plain sum
over the very weights that a token reads: where memory lies makes a difference of a third, so that another buffer would
not do. Figures go to bfloat16.json beside this script, or into `--output`.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from truedepth.engine.cpu.layouts import Panels
from truedepth.engine.engine import Engine
from truedepth.engine.sampling.request import Request
from truedepth.measuring.bandwidth import read_bandwidth
from truedepth.measuring.machine import machine_record
from truedepth.measuring.timer import Spread
from truedepth.models.loading.embedded import DEFAULT
from truedepth.models.loading.load import load
from truedepth.records.files import write_atomic

PROMPT = "The history of the steam engine begins with"
INSTRUCTIONS = ("avx512_bf16", "avx512f", "avx2", "asimd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", metavar="FILE", help="a model of some billion parameters")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder for figures")
    options = parser.parse_args()
    figures: dict[str, Any] = {"instructions": instructions(), "embedded": against_float32(options.rounds)}
    if options.large:
        figures["large"] = against_memory(options.large, options.rounds)
    machine = machine_record(torch.device("cpu"), read_bandwidth(torch.device("cpu")))
    record = {"machine": machine.model_dump(), **figures}
    write_atomic(options.output / "bfloat16.json", json.dumps(record, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


def instructions() -> list[str]:
    """Sets of instructions of this processor that matter here, as Linux names them."""
    try:
        words = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text()))
    except OSError:
        return []
    return [name for name in INSTRUCTIONS if name in words]


def against_float32(rounds: int, new_tokens: int = 128) -> dict[str, Any]:
    """Tokens a second of the embedded model in both types, and their ratio, by round."""
    rates: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    with ExitStack() as opened:
        engines = {}
        for dtype in rates:
            loaded = load(DEFAULT, dtype=dtype, device="cpu")
            engines[dtype] = opened.enter_context(Engine(loaded.model, loaded.tokenizer))
            step_seconds(engines[dtype], 8)
        for _ in range(rounds):
            for dtype, engine in engines.items():
                rates[dtype].append(1 / step_seconds(engine, new_tokens))
    ratios = [half / full for half, full in zip(rates["bfloat16"], rates["float32"], strict=True)]
    spreads = {dtype: asdict(Spread.of(own)) for dtype, own in rates.items()}
    return {"model": DEFAULT, "tokens_per_second": spreads, "ratio": asdict(Spread.of(ratios))}


def against_memory(model: str, rounds: int, new_tokens: int = 32) -> dict[str, Any]:
    """Bytes a second of decoding and of sums over the weights that a token reads, and their ratio, by round."""
    loaded = load(model, dtype="bfloat16", device="cpu")
    decoding, sums = [], []
    with Engine(loaded.model, loaded.tokenizer) as engine:
        weights = list(packed_weights(engine))
        size = sum(weight.nbytes for weight in weights)
        step_seconds(engine, 4)
        for _ in range(rounds):
            begun = time.perf_counter()
            for weight in weights:
                weight.sum()
            sums.append(size / (time.perf_counter() - begun))
            decoding.append(size / step_seconds(engine, new_tokens))
    return {
        "model": Path(model).name,
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "bytes_per_token": size,
        "tokens_per_second": asdict(Spread.of([rate / size for rate in decoding])),
        "decoding_bytes_per_second": asdict(Spread.of(decoding)),
        "sums_bytes_per_second": asdict(Spread.of(sums)),
        "share": asdict(Spread.of([one / other for one, other in zip(decoding, sums, strict=True)])),
    }


def packed_weights(engine: Engine) -> Iterator[torch.Tensor]:
    """Every weight that a step reads, as float32 numbers of no meaning, which PyTorch adds up fastest."""
    packing: Any = engine.runner._packing  # nobody but this script has a use for it
    for packed in packing._packed:
        layout = getattr(packed, "layout", None)
        if isinstance(layout, Panels):
            yield layout.panels.view(torch.float32)


def step_seconds(engine: Engine, new_tokens: int) -> float:
    """Seconds a token after the first."""
    assert engine.tokenizer is not None
    (result,) = engine.generate([Request(engine.tokenizer(PROMPT)["input_ids"], new_tokens + 1, ignore_end=True)])
    return (result.timings.total - result.timings.first_token) / new_tokens


if __name__ == "__main__":
    main()
