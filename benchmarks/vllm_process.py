"""vLLM in a process that answers prompts with a checkpoint, which `truedepth export hf` writes.

vLLM asks for another transformers than truedepth does, so it lives in an environment of its own, with truedepth
installed there for its plugin; `make test-vllm` makes one, `.venv-vllm`. The process is this file, run by that
environment's interpreter:

    python benchmarks/vllm_process.py FOLDER '{"tensor_parallel_size": 2}'

It reads requests from standard input, one JSON object a line, and writes one a line to standard output.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

_ANSWER = "ANSWER "
"""vLLM writes to standard output, too; lines for us begin so."""


class VllmProcess:
    """vLLM with one model, float32, greedy, in processes of their own. Close it after use.

    Ranks share the cores, and belong to one node or, as they would on several machines, to one each: then they talk
    over gloo, else through shared memory where vLLM can. Ranks that have nothing to do still look for work, which takes
    a core from others: `pause` holds all of them.
    """

    def __init__(self, python: str, folder: Path, *, nodes: int = 1, **options: Any) -> None:
        cores = sorted(os.sched_getaffinity(0))
        ranks = options.get("tensor_parallel_size", 1) * options.get("pipeline_parallel_size", 1)
        share = max(1, len(cores) // ranks)
        places = [",".join(map(str, cores[rank * share : (rank + 1) * share])) for rank in range(ranks)]
        self._log = folder.with_name(f"{folder.name}-vllm.log")
        if nodes > 1:
            options |= {"nnodes": nodes, "master_addr": "127.0.0.1", "master_port": _free_port()}
        local = ranks // nodes
        self._nodes = [
            self._start([python, __file__, str(folder), json.dumps(options)], node, places[node * local :][:local])
            for node in range(nodes)
        ]
        self._process = self._nodes[0]
        self._receive()

    def _start(self, command: list[str], node: int, places: list[str]) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "|".join(places),
        }
        with self._log.open("a") as log:
            return subprocess.Popen(
                [*command, str(node)],
                stdin=subprocess.PIPE,
                stdout=log if node else subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                start_new_session=True,  # one group of processes, which signals reach together
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def answer(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> dict[str, Any]:
        """`tokens` of each prompt, and the `seconds` that all of them took together."""
        assert self._process.stdin is not None
        print(json.dumps({"prompts": prompts, "new_tokens": new_tokens}), file=self._process.stdin, flush=True)
        return self._receive()

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        self._signal(signal.SIGKILL)
        for node in self._nodes:
            node.wait()

    def _signal(self, number: int) -> None:
        for node in self._nodes:
            os.killpg(node.pid, number)

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_ANSWER):
                answer: dict[str, Any] = json.loads(line.removeprefix(_ANSWER))
                return answer
            with self._log.open("a") as log:
                log.write(line)
        raise RuntimeError(f"vLLM ended with exit code {self._process.wait()}:\n{self._log.read_text()[-12000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _follow(options: dict[str, Any]) -> None:
    """The ranks of a node that is not the first, as `vllm serve --headless` has them."""
    from vllm import EngineArgs
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor

    config = EngineArgs(**options).create_engine_config(headless=True)
    MultiprocExecutor(config, monitor_workers=False).start_worker_monitor(inline=True)


def _serve(options: dict[str, Any]) -> None:
    from vllm import LLM, SamplingParams, TokensPrompt

    llm = LLM(**options)
    print(_ANSWER + "{}", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        params = SamplingParams(temperature=0, max_tokens=request["new_tokens"], ignore_eos=True, detokenize=False)
        prompts = [TokensPrompt(prompt_token_ids=ids) for ids in request["prompts"]]
        begun = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - begun
        tokens = [list(output.outputs[0].token_ids) for output in outputs]
        print(_ANSWER + json.dumps({"tokens": tokens, "seconds": seconds}), flush=True)


def _main(folder: str, asked: str, node: str = "0") -> None:
    # Prefixes are not kept: a prompt that comes again would cost nothing.
    fixed = {"model": folder, "dtype": "float32", "max_model_len": 512, "enable_prefix_caching": False, "seed": 0}
    options = {**fixed, **json.loads(asked)}
    if node == "0":
        _serve(options)
    else:
        _follow({**options, "node_rank": int(node)})


if __name__ == "__main__":
    _main(*sys.argv[1:])
