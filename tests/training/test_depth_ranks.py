"""Training for depth on two gloo ranks: as on one with the doubled batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

SCRIPT = Path(__file__).with_name("depth_on_ranks.py")


@pytest.mark.slow
def test_two_ranks_learn_as_one_with_the_doubled_batch(tmp_path: Path, tiny_model: Any, token_ids: Any) -> None:
    """LayerSkip, with layers left out on one rank or both; recovery in one pass and in two; and a sharded model.

    Sums are made in another order: an absolute difference of 1e-5 in weights is allowed after four steps, and of 1e-6
    in gradients.
    """
    tiny_model("llama").save_pretrained(tmp_path / "model")
    ids = token_ids(16, 10)
    starts = torch.randint(1, 8, (16,), generator=torch.Generator().manual_seed(2))
    labels = ids.masked_fill(torch.arange(10) < starts[:, None], -100)
    save_file({"input_ids": ids, "labels": labels, "response_start": starts}, tmp_path / "rows.safetensors")
    for name, launcher in (
        ("one", []),
        ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]),
    ):
        command = [sys.executable, *launcher, str(SCRIPT), str(tmp_path), name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
    before = load_file(tmp_path / "model" / "model.safetensors")
    for training, tolerance in (("layerskip", 1e-5), ("one-pass", 1e-5), ("two-passes", 1e-5), ("sharded", 1e-6)):
        one, two = (load_file(tmp_path / f"{name}-{training}.safetensors") for name in ("one", "two"))
        assert one.keys() == two.keys()
        assert not torch.equal(one["model.layers.2.mlp.up_proj.weight"], before["model.layers.2.mlp.up_proj.weight"])
        for name, value in one.items():
            torch.testing.assert_close(
                two[name], value, rtol=1e-4, atol=tolerance, msg=lambda text, at=(training, name): f"{at}: {text}"
            )
