"""transformers' own tensor parallelism (`tp_plan="auto"`) on exported checkpoints, over two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from truedepth.export.hf.export import export_hf
from truedepth.models.rewire import apply
from truedepth.plan import DepthPlan

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("tensor_parallel.py")


def test_two_ranks_compute_the_plan(tmp_path: Path, tiny_checkpoint: Any, token_ids: Any) -> None:
    plan, ids = DepthPlan.parse("0 (1|3) 4 5", 6), token_ids(1, 9)[0].tolist()
    folders, models = [], []
    for name in ("llama", "qwen3"):
        source, model = tiny_checkpoint(name, vocab_size=260)
        folders.append(tmp_path / f"wide-{name}")
        models.append(model)
        export_hf(str(source), plan, folders[-1])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    done = subprocess.run(
        [*command, json.dumps(ids), *map(str, folders)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-3000:]
    for model, result in zip(models, json.loads(lines[0].removeprefix("RESULT ")), strict=True):
        assert result["rows"] == 4 * 8  # of 8 heads of 8 numbers: one source layer's
        with torch.no_grad():
            asked = apply(model, plan)(torch.tensor([ids])).logits[0, -1]
        torch.testing.assert_close(torch.tensor(result["logits"]), asked, atol=1e-4, rtol=1e-4)
