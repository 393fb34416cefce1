"""llama.cpp in a process that answers prompts with a GGUF file, which `truedepth export gguf` writes.

llama.cpp comes prebuilt in the package `xllamacpp` (`pip install xllamacpp`), which truedepth does not depend on. It
may be installed for another interpreter. The process is this file, run by that interpreter:

    python benchmarks/llama_cpp.py '{"model": "MODEL.gguf", "threads": 2, "context": 512}'

It reads requests from standard input, one JSON object a line, and writes one a line to standard output.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

BYTES_PER_VALUE = {"f32": 4.0, "q8_0": 34 / 32}
"""A block of q8_0 is 32 numbers of a byte and their scale in two."""


def is_installed(python: str) -> bool:
    """Whether the interpreter `python` has llama.cpp."""
    return subprocess.run([python, "-c", "import xllamacpp"], capture_output=True, check=False).returncode == 0


class LlamaProcess:
    """llama.cpp with one model, in a process of its own. Close it after use.

    Attention rounds to float16, as llama.cpp has it where nobody asks for something else, or not at all.
    """

    def __init__(
        self,
        python: str,
        model: Path,
        threads: int,
        context: int,
        *,
        draft: Path | None = None,
        float32_attention: bool = False,
    ) -> None:
        options = {
            "model": str(model),
            "threads": threads,
            "context": context,
            "draft": str(draft) if draft else None,
            "float32_attention": float32_attention,
        }
        command = [python, __file__, json.dumps(options)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._receive()

    def answer(self, prompt: list[int], new_tokens: int) -> dict[str, Any]:
        """`text`, `predicted_n` tokens long; `prompt_ms` until the first, `predicted_ms` from there to the last."""
        return self._ask({"prompt": prompt, "n_predict": new_tokens})

    def tokens(self, prompt: list[int], new_tokens: int) -> list[int]:
        """The ids of the tokens that it writes, always the likeliest."""
        chosen: list[int] = self._ask({"prompt": prompt, "n_predict": new_tokens, "logprobs": 1})["tokens"]
        return chosen

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"llama.cpp ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def _serve(model: str, threads: int, context: int, draft: str | None, float32_attention: bool) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx = context
    params.n_parallel = 1
    params.cache_ram_mib = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    if float32_attention:
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if draft is not None:
        speculative = params.speculative
        speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        speculative.draft.mparams.path = draft
        speculative.draft.cpuparams.n_threads = speculative.draft.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    print(json.dumps({"ready": True}), flush=True)
    fixed = {"temperature": 0, "ignore_eos": True, "cache_prompt": False}
    for line in sys.stdin:
        answer = server.handle_completions(json.loads(line) | fixed)
        choice = answer["choices"][0]
        tokens = [token["id"] for token in (choice["logprobs"] or {"content": []})["content"]]
        print(json.dumps({"text": choice["text"], "tokens": tokens, **answer["timings"]}), flush=True)


if __name__ == "__main__":
    _serve(**json.loads(sys.argv[1]))
