"""Run by `test_ranks.py` under torchrun: `python on_ranks.py FOLDER WHAT`, one of the checks below on every rank."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

import truedepth.parallel.load as loading
from truedepth.cli import main
from truedepth.parallel.launch import joined_ranks
from truedepth.parallel.ranks import GroupRanks
from truedepth.plan import DepthPlan

PLANS = {"full": "0-5", "lp": "0 (1|2) 3 (4|5)", "par": "(0|1) 2 (4|5)", "merged": "0 (1+2) (3|4)"}


def logits(folder: Path) -> None:
    """The logits of some plans of a checkpoint, into a file for each rank; no rank has read a whole layer for all."""
    ids = torch.arange(3, 23).view(2, 10)
    with joined_ranks("cpu") as ranks:
        plans = {name: DepthPlan.parse(text, 6, "par" if name == "par" else "lp") for name, text in PLANS.items()}
        parts = loading.load_split(str(folder), lambda _: plans, ranks, device=ranks.device)
        found = {}
        for name, model in parts.models.items():
            before = ranks.traffic.copy()
            with torch.no_grad():
                values = model(ids).logits.flatten().tolist()
            found[name] = (values, ranks.traffic.since(before).all_reduces)
        full, paired = (parts.models[name].model.embed_tokens.weight.data_ptr() for name in ("full", "lp"))
        chosen = ranks.first_choice(17 + ranks.rank)
        record = {"found": found, "shared": full == paired, "chosen": chosen}
        Path(os.environ["RESULTS"]).with_suffix(f".{ranks.rank}.json").write_text(json.dumps(record))


def broken(folder: Path) -> None:
    """`truedepth generate`, in which the second rank fails in the middle of a text."""
    _after(40, lambda ranks: _fail() if ranks.rank else None)
    _generate(folder)


def interrupted(folder: Path) -> None:
    """`truedepth generate`, in which Ctrl-C is pressed in the middle of a text: every process gets it."""
    _after(40, lambda ranks: os.kill(os.getpid(), signal.SIGINT))
    _generate(folder)


def _fail() -> None:
    raise MemoryError("this rank has no more")


def _after(sums: int, act: object) -> None:
    """Have something happen in the sum of that number."""
    plain = GroupRanks.sum

    def counted(self: GroupRanks, tensor: torch.Tensor) -> torch.Tensor:
        if self.traffic.all_reduces == sums:
            act(self)  # type: ignore[operator]
        return plain(self, tensor)

    GroupRanks.sum = counted  # type: ignore[method-assign]


def _generate(folder: Path) -> None:
    main(["generate", str(folder), "--plan", PLANS["lp"], "--prompt", "hello", "--max-new-tokens", "200"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"logits": logits, "broken": broken, "interrupted": interrupted}[sys.argv[2]](Path(sys.argv[1]))
