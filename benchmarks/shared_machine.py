"""Decoding on a machine that does other work too: two processes that decode at once, and one beside a busy processor.

    python benchmarks/shared_machine.py
    python benchmarks/shared_machine.py --model FOLDER --rounds 3

Two processes hold the model each, with as many threads as PyTorch takes by itself. In each round one decodes alone,
then both at once, then one beside a program that keeps one processor busy. Figures go to shared_machine.json beside
this script, or into `--output`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from truedepth.engine.engine import Engine
from truedepth.engine.sampling.request import Request
from truedepth.measuring.bandwidth import read_bandwidth
from truedepth.measuring.machine import machine_record
from truedepth.measuring.timer import Spread
from truedepth.models.loading.embedded import DEFAULT
from truedepth.models.loading.load import load
from truedepth.records.files import write_atomic

DTYPES = ("float32", "bfloat16")
NEW_TOKENS = 128
PROMPT = "The history of the steam engine begins with"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder for figures")
    options = parser.parse_args()
    rows = [row for dtype in DTYPES for row in measured(options.model, dtype, options.rounds)]
    machine = machine_record(torch.device("cpu"), read_bandwidth(torch.device("cpu")))
    record = {"machine": machine.model_dump(), "model": options.model, "new_tokens": NEW_TOKENS, "rows": rows}
    write_atomic(options.output / "shared_machine.json", json.dumps(record, indent=2) + "\n")
    for row in rows:
        print(row)


def measured(model: str, dtype: str, rounds: int) -> Iterator[dict[str, Any]]:
    """Tokens a second of all three, and the ratio of all processes together to one alone, by round."""
    alone, together, beside = [], [], []
    with decoders(model, dtype, 2) as both:
        for _ in range(rounds):
            alone.append(tokens_per_second(both[:1]))
            together.append(tokens_per_second(both))
            with busy_processor():
                beside.append(tokens_per_second(both[:1]))
    for name, rates in (("one alone", alone), ("two at once", together), ("one beside a busy processor", beside)):
        ratios = [sum(own) / sum(one) for own, one in zip(rates, alone, strict=True)]
        each = Spread.of([rate for own in rates for rate in own])
        yield {
            "dtype": dtype,
            "what": name,
            "tokens_per_second_each": asdict(each),
            "to_one_alone": asdict(Spread.of(ratios)),
        }


def tokens_per_second(decoders: Sequence[Connection]) -> list[float]:
    """Of each process, all at once."""
    for decoder in decoders:
        decoder.send(NEW_TOKENS)
    return [decoder.recv() for decoder in decoders]


@contextmanager
def decoders(model: str, dtype: str, count: int) -> Iterator[list[Connection]]:
    """Processes with the model open, which decode so many tokens as they are sent, and answer tokens a second."""
    context = multiprocessing.get_context("spawn")
    found, processes = [], []
    for _ in range(count):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=decode, args=(theirs, model, dtype), daemon=True))
        processes[-1].start()
        found.append(ours)
    for each in found:
        each.send(8)
        each.recv()
    yield found
    for process in processes:
        process.kill()


def decode(asked: Connection, model: str, dtype: str) -> None:
    """One process that decodes."""
    loaded = load(model, dtype=dtype, device="cpu")
    ids = loaded.tokenizer(PROMPT)["input_ids"]
    with Engine(loaded.model) as engine:
        while True:
            count = asked.recv()
            begun = time.perf_counter()
            engine.generate([Request(ids, count, ignore_end=True)])
            asked.send(count / (time.perf_counter() - begun))


@contextmanager
def busy_processor() -> Iterator[None]:
    """A program that computes without end, on any one processor."""
    process = multiprocessing.get_context("spawn").Process(target=spin, daemon=True)
    process.start()
    time.sleep(1)
    yield
    process.kill()
    process.join()


def spin() -> None:
    """Use one processor."""
    while True:
        pass


if __name__ == "__main__":
    main()
