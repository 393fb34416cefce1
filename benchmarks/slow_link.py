"""Layer parallelism over a slower link: measured ratios of two ranks against the cost model's.

    sudo python benchmarks/slow_link.py
    sudo python benchmarks/slow_link.py --delays 0 200 --repeats 3 --new-tokens 8 --layers 8

One rank runs in each of two network namespaces (`delayed_link.py`), over gloo, with one thread. At every delay,
paired plans are timed in turns with the unmodified model, both of `ranks.py`. The prediction is made from a profile,
which `truedepth measure --profile` measures in the same setting without delay, and from the delay that pings show.
How many delays an all-reduce waits for comes from a profile at the largest delay. Writes `slow_link.json` beside this
file; `plots.py` draws it. Needs Linux, root, `ip`, and the embedded model's tokenizer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ranks
from delayed_link import DEVICE, DelayedLink

from truedepth.hardware.prediction import predict
from truedepth.hardware.profile import Figure, Hardware, load_hardware
from truedepth.models.loading.load import load_shapes
from truedepth.plan import DepthPlan

PORT = "29533"


def over_link(link: DelayedLink, arguments: Sequence[str]) -> str:
    """What the first rank of `torchrun -m truedepth ...` prints, one rank on each side of the link."""
    running = []
    for side in (0, 1):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        where = ["--node-rank", str(side), "--master-addr", link.address(0), "--master-port", PORT]
        command = [*link.prefix(side), *torchrun, *where, "-m", "truedepth", *arguments]
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": DEVICE, "OMP_NUM_THREADS": "1"}
        running.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        )
    ended = [(process.communicate(), process.returncode) for process in running]
    for (_, complaint), code in ended:
        if code:
            raise SystemExit(f"{' '.join(arguments)}: {complaint[-3000:]}")
    return ended[0][0][0]


def profile(link: DelayedLink, folder: Path) -> Hardware:
    """The two ranks as they are over this link."""
    file = folder / f"profile-{link.seconds:g}.yaml"
    over_link(link, ["measure", "--profile", "--device", "cpu", "-o", str(file)])
    return load_hardware(str(file))


def slower(hardware: Hardware, seconds: float) -> Hardware:
    """The hardware with all-reduces that wait so much longer."""
    stack = hardware.profile.stacks[hardware.stack]
    latency = stack.all_reduce_latency_seconds
    if latency is None:
        raise SystemExit("the profile has no all-reduces; were there two ranks?")
    later = Figure(
        value=latency.value + seconds,
        low=latency.at("low") + seconds,
        high=latency.at("high") + seconds,
        source=latency.source,
    )
    changed = stack.model_copy(update={"all_reduce_latency_seconds": later})
    return replace(hardware, profile=hardware.profile.model_copy(update={"stacks": {hardware.stack: changed}}))


def compare(link: DelayedLink, model: Path, plan: DepthPlan, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measured figures of a plan, and of the unmodified model in turns with it."""
    sizes = ["--prompt-tokens", str(arguments.prompt_tokens), "--new-tokens", str(arguments.new_tokens)]
    command = ["measure", str(model), "--plan", plan.notation, "--form", plan.form, "--device", "cpu"]
    printed = over_link(link, [*command, *sizes, "--repeats", str(arguments.repeats), "--json"])
    found: dict[str, Any] = json.loads(printed)
    return found["plans"]["plan"]


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure and predict at every delay."""
    plans = ranks.plans(arguments.layers)
    del plans["unpaired"]
    context = arguments.prompt_tokens + arguments.new_tokens // 2
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = folder / "model"
        ranks.save(model, arguments.layers)
        shapes = load_shapes(str(model))
        with DelayedLink(0.0) as link:
            how, trip, fast = link.how, link.round_trip(), profile(link, folder)
        with DelayedLink(1e-6 * max(arguments.delays)) as link:
            late = (link.round_trip() - trip) / 2
            slow = profile(link, folder)
        waits = (slow.machine.all_reduce_seconds - fast.machine.all_reduce_seconds) / late
        rows = []
        for delay in arguments.delays:
            with DelayedLink(1e-6 * delay) as link:
                seen = max(0.0, (link.round_trip() - trip) / 2)
                hardware = slower(fast, waits * seen)
                predicted = predict(shapes, hardware, plans, context=context, prompt_tokens=arguments.prompt_tokens)
                for name, plan in plans.items():
                    measured = compare(link, model, plan, arguments)
                    own = predicted.plans[name].decode
                    ratio = measured["ratio"]["median"]
                    rows.append(
                        {
                            "delay_seconds": 1e-6 * delay,
                            "seen_delay_seconds": seen,
                            "plan": name,
                            "measured": measured,
                            "predicted": asdict(own),
                            "error": own.speedup.value / ratio - 1,
                        }
                    )
                    print(f"{delay:5.0f} us  {name:10}  measured {ratio:.3f}  predicted {own.speedup.value:.3f}")
    return {
        "layers": arguments.layers,
        "context": context,
        "delayed_by": how,
        "round_trip_without_delay_seconds": trip,
        "delays_in_an_all_reduce": waits,
        "profile": fast.profile.model_dump(exclude_none=True),
        "plans": {name: plan.to_dict() for name, plan in plans.items()},
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delays", type=float, nargs="+", default=[0, 50, 200, 1000], help="microseconds, each way")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    found = run(parser.parse_args())
    target = Path(__file__).with_suffix(".json")
    target.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
