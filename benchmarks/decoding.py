"""Decoding compared: truedepth plain and self-speculative, `generate` of transformers, and llama.cpp.

    python benchmarks/decoding.py --cache FOLDER [--llama-python PYTHON]    the comparison
    python benchmarks/decoding.py --cache FOLDER --equality --prompts FILE  self-speculation changes no token
    python benchmarks/decoding.py --cache FOLDER --ablation                 what each part of sharing is worth
    python benchmarks/decoding.py --cache FOLDER --verify-cost              verifying several tokens against one
    python benchmarks/decoding.py --cache FOLDER --memory                   peak memory, and many short requests
    python benchmarks/decoding.py --cache FOLDER --weights                  float32, bfloat16 and int8 (torchao)

All entrants decode greedily, with the same float32 weights (but for llama.cpp's q8_0 and `--weights`), in one
process (llama.cpp in another), taking turns on the same prompts. FOLDER keeps what is made once: a model whose exits
are trained (see trained_exits.py) and GGUF files. Figures go to decoding*.json in `--output`, which is this file's
folder unless said; the comparison also draws FOLDER/decoding.html. llama.cpp is left out where the package
`xllamacpp` is not installed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from decoding_checks import equality, memory
from decoding_compare import compare
from decoding_costs import ablation, verify_cost
from decoding_entrants import DraftConfig, LlamaCpp, Transformers, Truedepth, compiled
from decoding_plot import page
from decoding_subjects import TRAINED, Subject, draft_vocabulary, source_of, subject
from decoding_tables import print_comparison, print_rows
from llama_cpp import is_installed
from weight_types import weight_types

from truedepth.engine.drafts.adaptive import AdaptivePolicy
from truedepth.engine.drafts.policy import FixedPolicy
from truedepth.export.gguf.export import export_gguf
from truedepth.measuring.bandwidth import read_bandwidth
from truedepth.measuring.machine import machine_record
from truedepth.models.loading.embedded import DEFAULT
from truedepth.plan import DepthPlan
from truedepth.records.files import write_atomic
from truedepth.records.progress import terminal

DTYPES = ("float32", "bfloat16")
"""Those in which drafting must change no token."""

Mode = Callable[[argparse.Namespace], dict[str, Any]]


def main() -> None:
    modes: dict[str, Mode] = {
        "comparison": _comparison,
        "equality": _equality,
        "ablation": _ablation,
        "verify-cost": _verify_cost,
        "memory": _memory,
        "weights": _weights,
    }
    options = _options(modes)
    transformers.logging.set_verbosity_error()
    options.cache.mkdir(parents=True, exist_ok=True)
    figures = modes[options.mode](options)
    machine = machine_record(torch.device("cpu"), read_bandwidth(torch.device("cpu")))
    record = {"machine": machine.model_dump(), "settings": _settings(options), **figures}
    name = "decoding" if options.mode == "comparison" else f"decoding-{options.mode}"
    write_atomic(options.output / f"{name}.json", json.dumps(record, indent=2) + "\n")
    if options.mode == "comparison":
        write_atomic(options.cache / "decoding.html", page(record))
        print(f"the page: {options.cache / 'decoding.html'}")


def _options(modes: Iterable[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_mutually_exclusive_group()
    for mode in modes:
        group.add_argument(f"--{mode}", dest="mode", action="store_const", const=mode, default="comparison")
    parser.add_argument("--cache", type=Path, required=True, help="folder for what is made once")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder for figures")
    parser.add_argument(
        "--model", action="append", help=f"an embedded model, a folder or '{TRAINED}'; may be given several times"
    )
    parser.add_argument("--prompts", type=Path, help="JSON lines with 'turns'; the first is used")
    parser.add_argument("--count", type=int, help="prompts")
    parser.add_argument("--new-tokens", type=int)
    parser.add_argument("--batch", type=int, action="append", help="may be given several times")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--length", type=int, action="append", help="tokens drafted a round; several times")
    parser.add_argument("--requests", type=int, default=10_000, help="of --memory")
    parser.add_argument("--llama-python", default=sys.executable, help="the interpreter that has xllamacpp")
    parser.add_argument("--no-compile", action="store_true", help="leave out transformers compiled, which takes long")
    return parser.parse_args()


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, without the paths of this machine."""
    return {name: value for name, value in vars(options).items() if isinstance(value, (int, list)) and value}


def _comparison(options: argparse.Namespace) -> dict[str, Any]:
    models = []
    for name in options.model or [DEFAULT, TRAINED]:
        with subject(name, options.cache, options.prompts, options.count or 8) as tested:
            new_tokens = options.new_tokens or 96
            context = max(map(len, tested.prompts)) + new_tokens + 1
            runs = []
            with _entrants(tested, options, context) as (configs, left_out):
                for batch in options.batch or [1, 4]:
                    compared = compare(
                        configs,
                        tested.prompts,
                        batch=batch,
                        new_tokens=new_tokens,
                        repeats=options.repeats,
                        progress=terminal,
                    )
                    runs.append(compared.to_dict(tested.model))
                    print_comparison(tested.name, runs[-1])
            models.append({**tested.to_dict(), "new_tokens": new_tokens, "left_out": left_out, "runs": runs})
    return {"models": models}


@contextmanager
def _entrants(
    tested: Subject, options: argparse.Namespace, context: int
) -> Iterator[tuple[list[DraftConfig], dict[str, str]]]:
    """All that can run here, and why the others cannot."""
    draft = tested.engine.draft(tested.exit_plan)
    found: list[DraftConfig] = [Truedepth("truedepth, plain", tested.engine)]
    for length in options.length or tested.lengths:
        name = f"truedepth, exit {tested.exit}, {length} drafted"
        found.append(Truedepth(name, tested.engine, (draft,), partial(FixedPolicy, length)))
    found.append(
        Truedepth(f"truedepth, exit {tested.exit}, adaptive", tested.engine, (draft,), partial(AdaptivePolicy, 1))
    )
    found += _of_transformers(tested, context)
    left_out: dict[str, str] = {}
    if options.no_compile:
        left_out["transformers, static cache, compiled"] = "--no-compile was given"
    elif shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"):
        found.append(compiled("transformers, static cache, compiled", tested.model, context))
    else:
        left_out["transformers, static cache, compiled"] = "there is no C++ compiler"
    processes = []
    if is_installed(options.llama_python):
        processes = [_llama(tested, options, kind, context) for kind in ("f32", "q8_0")]
    else:
        left_out["llama.cpp"] = f"xllamacpp is not installed for {Path(options.llama_python).name}"
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}", file=sys.stderr)
    try:
        yield [*found, *processes], left_out
    finally:
        for process in processes:
            process.close()


def _of_transformers(tested: Subject, context: int) -> list[DraftConfig]:
    exit_ = tested.exit
    fixed = {
        "num_assistant_tokens": tested.lengths[-1],
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.0,
    }
    early, name = {"assistant_early_exit": exit_}, f"transformers, assistant_early_exit {exit_}"
    assisted = partial(Transformers, model=tested.model, speculates=True, largest_batch=1)
    return [
        Transformers("transformers, dynamic cache", tested.model),
        Transformers("transformers, static cache", tested.model, {"disable_compile": True}, static=context),
        assisted(name, options=early),
        assisted(f"{name}, {tested.lengths[-1]} drafted", options=early, settings=fixed),
        assisted("transformers, prompt lookup", options={"prompt_lookup_num_tokens": 10}),
    ]


def _llama(tested: Subject, options: argparse.Namespace, kind: str, context: int) -> LlamaCpp:
    path = options.cache / f"{tested.name}-{kind}.gguf"
    if not path.exists():
        export_gguf(source_of(tested.source, options.cache), DepthPlan.full(tested.num_layers), path, type=kind)
    return LlamaCpp(f"llama.cpp, {kind}", options.llama_python, path, kind, context)


def _equality(options: argparse.Namespace) -> dict[str, Any]:
    count, rows = options.count or (40 if options.prompts else 8), []
    for dtype in DTYPES:
        with subject(DEFAULT, options.cache, options.prompts, count, dtype) as tested:
            record = options.cache / f"equality-{dtype}.jsonl"
            found = equality(tested, options.new_tokens or 96, options.batch or [1, 4], record, terminal)
        rows += [{"dtype": dtype, **row} for row in found["rows"]]
    print_rows("greedy self-speculation against plain greedy decoding", rows)
    return {"model": DEFAULT, **found, "rows": rows}


def _ablation(options: argparse.Namespace) -> dict[str, Any]:
    runs = []
    with subject((options.model or [TRAINED])[0], options.cache, options.prompts, options.count or 8) as tested:
        vocabulary = draft_vocabulary(tested)
        for batch in options.batch or [1]:
            settings = {"batch": batch, "new_tokens": options.new_tokens or 96, "repeats": options.repeats}
            length = (options.length or tested.lengths)[-1]
            runs.append(ablation(tested, vocabulary, length, settings, terminal))
            print_comparison(tested.name, runs[-1])
        return {"model": tested.to_dict(), "runs": runs}


def _verify_cost(options: argparse.Namespace) -> dict[str, Any]:
    models = []
    for name in options.model or [DEFAULT]:
        with subject(name, options.cache, options.prompts, 1) as tested:
            found = verify_cost(tested, options.batch or [1, 4], 10 * options.repeats, terminal)
            print_rows(f"{tested.name}: a target pass over several tokens", found["rows"])
            models.append({**tested.to_dict(), **found})
    return {"models": models}


def _memory(options: argparse.Namespace) -> dict[str, Any]:
    name = (options.model or [DEFAULT])[0]
    found = memory(name, options.cache, (options.batch or [4])[0], options.new_tokens or 256, options.requests)
    print(json.dumps(found, indent=2))
    return {"model": name, **found}


def _weights(options: argparse.Namespace) -> dict[str, Any]:
    name = (options.model or [DEFAULT])[0]
    with subject(name, options.cache, options.prompts, options.count or 4) as tested:
        found = weight_types(tested, options.cache, options.new_tokens or 64, options.repeats, terminal)
        print_comparison(tested.name, found)
        return {"model": tested.to_dict(), **found}


if __name__ == "__main__":
    main()
