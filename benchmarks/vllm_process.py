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

    Ranks that have nothing to do still look for work, which takes a core from others: `pause` holds all of them.
    """

    def __init__(self, python: str, folder: Path, **options: Any) -> None:
        cores = sorted(os.sched_getaffinity(0))
        ranks = options.get("tensor_parallel_size", 1) * options.get("pipeline_parallel_size", 1)
        share = max(1, len(cores) // ranks)
        places = [",".join(map(str, cores[rank * share : (rank + 1) * share])) for rank in range(ranks)]
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "|".join(places),
        }
        self._log = folder.with_name(f"{folder.name}-vllm.log")
        with self._log.open("a") as errors:
            self._process = subprocess.Popen(
                [python, __file__, str(folder), json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
                start_new_session=True,  # one group of processes, which signals reach together
            )
        self._receive()

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
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_ANSWER):
                answer: dict[str, Any] = json.loads(line.removeprefix(_ANSWER))
                return answer
            with self._log.open("a") as log:
                log.write(line)
        raise RuntimeError(f"vLLM ended with exit code {self._process.wait()}:\n{self._log.read_text()[-12000:]}")


def _serve(folder: str, options: dict[str, Any]) -> None:
    from vllm import LLM, SamplingParams, TokensPrompt

    # Prefixes are not kept: a prompt that comes again would cost nothing.
    llm = LLM(folder, **{"dtype": "float32", "max_model_len": 512, "enable_prefix_caching": False, "seed": 0} | options)
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


if __name__ == "__main__":
    _serve(sys.argv[1], json.loads(sys.argv[2]))
