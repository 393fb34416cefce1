"""llama.cpp on the same weights: a GGUF file written from a loaded model, and a process that answers prompts with it.

llama.cpp comes prebuilt in the package `xllamacpp` (`pip install xllamacpp`), which truedepth does not depend on. It
may be installed for another interpreter. The process is this file, run by that interpreter:

    python benchmarks/llama_cpp.py MODEL.gguf THREADS CONTEXT

It reads requests from standard input, one JSON object a line, and writes one a line to standard output.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BYTES_PER_VALUE = {"f32": 4.0, "q8_0": 34 / 32}
"""A block of q8_0 is 32 numbers of a byte and their scale in two."""


def is_installed(python: str) -> bool:
    """Whether the interpreter `python` has llama.cpp."""
    return subprocess.run([python, "-c", "import xllamacpp"], capture_output=True, check=False).returncode == 0


class LlamaProcess:
    """llama.cpp with one model, in a process of its own. Close it after use."""

    def __init__(self, python: str, model: Path, threads: int, context: int) -> None:
        command = [python, __file__, str(model), str(threads), str(context)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._receive()

    def answer(self, prompt: list[int], new_tokens: int) -> dict[str, Any]:
        """`text`, `predicted_n` tokens long; `prompt_ms` until the first, `predicted_ms` from there to the last."""
        assert self._process.stdin is not None
        print(json.dumps({"prompt": prompt, "n_predict": new_tokens}), file=self._process.stdin, flush=True)
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


def write_gguf(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kind: str) -> None:
    """Write a llama model as GGUF, its matrices as `kind`: f32 or q8_0."""
    import gguf

    config: Any = model.config
    if config.model_type != "llama":
        raise ValueError(f"only llama models are written as GGUF, not {config.model_type}")
    aside = path.with_suffix(".part")
    writer = gguf.GGUFWriter(aside, "llama")
    head_dim = model.model.layers[0].self_attn.head_dim
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, tokenizer, config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        _add_tensor(writer, stored, _rotary_rows(name, parameter.detach().float(), config), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    aside.replace(path)


def _add_tensor(writer: Any, name: str, tensor: torch.Tensor, kind: str) -> None:
    import gguf

    quantised = gguf.GGMLQuantizationType.Q8_0
    values = tensor.numpy()
    if kind == "q8_0" and values.ndim > 1:
        writer.add_tensor(name, gguf.quants.quantize(values, quantised), raw_dtype=quantised)
    else:
        writer.add_tensor(name, values)


def _rotary_rows(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """Rows of q and k from transformers' rotary layout (two halves) to llama.cpp's (pairs of neighbours)."""
    if not any(part in name for part in ("q_proj", "k_proj")):
        return tensor
    heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape).contiguous()


def _add_tokenizer(writer: Any, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    """A byte-level BPE tokenizer. Prompts are given as ids; llama.cpp needs it to load the file."""
    import gguf

    backend: Any = tokenizer
    described = json.loads(backend.backend_tokenizer.to_str())
    tokens = [f"[unused {index}]" for index in range(size)]
    kinds = [gguf.TokenType.UNUSED] * size
    for token, index in tokenizer.get_vocab().items():
        tokens[index], kinds[index] = token, gguf.TokenType.NORMAL
    for added in described["added_tokens"]:
        kinds[added["id"]] = gguf.TokenType.CONTROL
    merges = described["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)


def _serve(model: str, threads: int, context: int) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx = context
    params.n_parallel = 1
    params.cache_ram_mib = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    print(json.dumps({"ready": True}), flush=True)
    fixed = {"temperature": 0, "ignore_eos": True, "cache_prompt": False}
    for line in sys.stdin:
        answer = server.handle_completions(json.loads(line) | fixed)
        print(json.dumps({"text": answer["choices"][0]["text"], **answer["timings"]}), flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
