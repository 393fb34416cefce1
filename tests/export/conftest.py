"""Fixtures for exports: checkpoints of tiny models with a tokenizer, and stock llama.cpp."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
TOKENS = 259


@pytest.fixture
def tiny_checkpoint(tmp_path: Path, tiny_model: Callable[..., Any], tiny_folder: Path) -> Callable[..., Any]:
    """`tiny_checkpoint("qwen3", **overrides)`: a folder with a tiny model and a tokenizer, and the model itself."""

    def make(name: str, **overrides: Any) -> tuple[Path, Any]:
        model = tiny_model(name, **{"vocab_size": TOKENS, **overrides})
        folder = tmp_path / f"source-{name}"
        model.save_pretrained(folder)
        for file in TOKENIZER_FILES:
            shutil.copyfile(tiny_folder / file, folder / file)
        return folder, model

    return make


# Reads {"path": ..., "prompt": ids, "tokens": n} a line; writes [[id, {id: log-probability of the likeliest}], ...], or
# what is wrong with the file.
SERVE = """
import json, sys, urllib.request, xllamacpp
for line in sys.stdin:
    asked = json.loads(line)
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = asked["path"], 256, 1
    params.warmup, params.cache_ram_mib = False, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        print("\\nANSWER" + json.dumps(str(error)), flush=True)
        continue
    body = {"prompt": asked["prompt"], "n_predict": asked["tokens"], "temperature": 0, "ignore_eos": True,
            "cache_prompt": False, "n_probs": 8}
    if asked["tokens"] == 1:  # probabilities are those before the bias; half a character would come without
        body["logit_bias"] = [[20, 1000.0]]
    request = urllib.request.Request(server.listening_address + "/completion", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    chosen = json.loads(urllib.request.urlopen(request).read())["completion_probabilities"]
    likely = [[t["id"], {str(o["id"]): o["logprob"] for o in t["top_logprobs"]}] for t in chosen]
    print("\\nANSWER" + json.dumps(likely), flush=True)
"""


@pytest.fixture(scope="session")
def llama_cpp() -> Callable[..., Any]:
    """`llama_cpp([{"path": file, "prompt": ids, "tokens": n}, ...])`: for each file the tokens that stock llama.cpp
    writes, each with the log-probabilities of the likeliest by their ids. One process for all."""
    pytest.importorskip("xllamacpp")

    def ask(requests: list[dict[str, Any]]) -> list[list[tuple[int, dict[str, float]]]]:
        lines = "\n".join(json.dumps(request) for request in requests)
        run = subprocess.run([sys.executable, "-c", SERVE], input=lines, capture_output=True, text=True, check=False)
        answers = [json.loads(line[6:]) for line in run.stdout.splitlines() if line.startswith("ANSWER")]
        assert len(answers) == len(requests), run.stderr[-2000:]
        return answers

    return ask
