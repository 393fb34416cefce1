"""What the cost model predicts for this machine, from a profile that is measured here, against what is measured.

    python benchmarks/predicted.py
    python benchmarks/predicted.py --repeats 3 --new-tokens 4 --batches 1

SmolLM2-135M whole, without a third of its layers, and with most of its layers in pairs, in both forms; decoding and
prefill, at batch 1 and 8. Writes `predicted.json` beside this file; `plots.py` draws it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from truedepth.hardware.prediction import UNMODIFIED, PassPrediction, predict
from truedepth.hardware.profile import Hardware
from truedepth.hardware.profiling import STACK, measure_profile
from truedepth.measuring.speed import compare
from truedepth.measuring.timer import Spread
from truedepth.methods.layer_parallel import LayerParallel
from truedepth.models.loading.load import load
from truedepth.plan import DepthPlan
from truedepth.records.progress import terminal

MODEL = "smollm2-135m"
PLANS = {
    "skipped": DepthPlan.parse("0-9 20-29", 30),
    "paired, lp": LayerParallel(depth=18, end=28, form="lp").plan(30),
    "paired, par": LayerParallel(depth=18, end=28, form="par").plan(30),
}


def judged(foretold: PassPrediction, measured: Spread, ratio: float) -> dict[str, Any]:
    """A prediction beside the measurement; errors are of the prediction, relative."""
    return {
        "predicted": asdict(foretold),
        "measured": asdict(measured),
        "measured_speedup": ratio,
        "error": foretold.tokens_per_second.value / measured.median - 1,
        "speedup_error": foretold.speedup.value / ratio - 1,
        "within_range": foretold.tokens_per_second.low <= measured.median <= foretold.tokens_per_second.high,
    }


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Predict and measure all plans at all batch sizes."""
    model = load(MODEL, device="cpu").model
    profile = measure_profile(torch.device("cpu"), torch.float32, terminal)
    hardware = Hardware("here", profile, 1, STACK)
    plans = {UNMODIFIED: DepthPlan.full(30), **PLANS}
    rows = []
    for batch in arguments.batches:
        context = arguments.prompt_tokens + (arguments.new_tokens + 1) // 2
        sizes = {"batch": batch, "prompt_tokens": arguments.prompt_tokens}
        foretold = predict(model, hardware, PLANS, context=context, **sizes)
        compared = compare(
            model, plans, new_tokens=arguments.new_tokens, repeats=arguments.repeats, progress=terminal, **sizes
        )
        whole = compared.speeds[UNMODIFIED].prefill_tokens_per_second.median
        for name, own in compared.speeds.items():
            prefill = own.prefill_tokens_per_second
            decode = judged(foretold.plans[name].decode, own.decode_tokens_per_second, compared.ratios[name].median)
            rows.append(
                {
                    "plan": name,
                    "batch": batch,
                    "decode": decode,
                    "prefill": judged(foretold.plans[name].prefill, prefill, prefill.median / whole),
                }
            )
            for phase in ("decode", "prefill"):
                found = rows[-1][phase]
                print(
                    f"batch {batch}  {name:12} {phase:8} measured {found['measured']['median']:8.1f} tokens/s  "
                    f"predicted {found['predicted']['tokens_per_second']['value']:8.1f}  off {found['error']:+.0%}  "
                    f"speedup off {found['speedup_error']:+.1%}"
                )
    return {
        "model": MODEL,
        "prompt_tokens": arguments.prompt_tokens,
        "new_tokens": arguments.new_tokens,
        "repeats": arguments.repeats,
        "profile": profile.model_dump(exclude_none=True),
        "plans": {name: plan.to_dict() for name, plan in plans.items()},
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    found = run(parser.parse_args())
    target = Path(__file__).with_suffix(".json")
    target.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
