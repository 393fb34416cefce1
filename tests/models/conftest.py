"""Fixtures for loading: a tiny tokenizer, checkpoints, and GGUF files as llama.cpp would write them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENS = [
    "<pad>",
    "<s>",
    "</s>",
    "Ġ",
    "Ċ",
    *"0123456789",
    *LETTERS,
    *".,!?-",
    "ĠĠ",
    "ĊĊ",
    "th",
    "the",
    "Ġthe",
    "an",
]
MERGES = ["Ġ Ġ", "Ċ Ċ", "t h", "th e", "Ġ the", "a n"]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Callable[[], Any]:
    """`tiny_tokenizer()`: a byte-level BPE tokenizer of 52 tokens with special tokens and a chat template."""

    def make() -> Any:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        backend = Tokenizer(
            models.BPE({token: index for index, token in enumerate(TOKENS)}, [tuple(m.split()) for m in MERGES])
        )
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
        )
        tokenizer.chat_template = TEMPLATE
        return tokenizer

    return make


@pytest.fixture
def checkpoint(
    tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Callable[[], Any]
) -> Callable[..., Path]:
    """`checkpoint("llama", **overrides)`: a folder with a tiny model and its tokenizer, written by
    `save_pretrained`; `max_shard_size` splits its weights."""

    def save(name: str = "llama", *, max_shard_size: str = "1GB", **overrides: Any) -> Path:
        folder = tmp_path / name
        tiny_model(name, **overrides).save_pretrained(folder, max_shard_size=max_shard_size)
        tiny_tokenizer().save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def write_gguf(tmp_path: Path) -> Callable[..., Path]:
    """`write_gguf(model, architecture, ...)`: a transformers model as GGUF, by llama.cpp's conventions.

    Keyword arguments: `edit`, called with the GGUFWriter before it writes; `tokenizer`, whether to write one;
    `quantise`, the gguf type of the matrices; `replace`, a function from name and array to what is written
    (None leaves the tensor out); `split`, the value of `tokenizer.ggml.pre`.
    """

    def write(
        model: Any,
        architecture: str = "llama",
        *,
        name: str = "tiny.gguf",
        edit: Callable[[Any], None] = lambda writer: None,
        replace: Callable[[str, Any], Any] = lambda name, array: array,
        quantise: Any = None,
        tokenizer: bool = True,
        split: str = "gpt-2",
    ) -> Path:
        import gguf

        path = tmp_path / name
        writer = gguf.GGUFWriter(path, architecture)
        _write_metadata(writer, model.config)
        if tokenizer:
            _write_tokenizer(writer, split)
        edit(writer)
        for tensor, converted in _converted(model, architecture):
            array = replace(tensor, converted)
            if array is None:
                continue
            if quantise is not None and array.ndim > 1:
                writer.add_tensor(tensor, gguf.quants.quantize(array, quantise), raw_dtype=quantise)
            else:
                writer.add_tensor(tensor, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def _write_metadata(writer: Any, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    rotary = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_dimension_count(int(head_dim * rotary.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rotary["rope_theta"])
    if config.model_type in ("gemma2", "gemma3_text"):
        writer.add_sliding_window(config.sliding_window)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if config.model_type == "gemma3_text":
        writer.add_array(
            "gemma3.attention.sliding_window_pattern",
            [kind == "sliding_attention" for kind in config.layer_types],
        )
    if config.model_type in ("mixtral", "qwen3_moe"):
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if config.model_type == "qwen3_moe":
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def _write_tokenizer(writer: Any, split: str) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3, *[1] * (len(TOKENS) - 3)])
    writer.add_token_merges(MERGES)
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)


def _converted(model: Any, architecture: str) -> list[tuple[str, Any]]:
    """Names and arrays that llama.cpp's converter would write, from its rules (not from truedepth's)."""
    import gguf

    config = model.config
    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    converted = []
    for name, parameter in model.named_parameters():
        array = parameter.detach().float().numpy()
        if "experts." in name:
            layer = re.findall(r"\d+", name)[0]
            parts = {"down": array}
            if "gate_up" in name:
                width = array.shape[1] // 2
                parts = {"gate": array[:, :width], "up": array[:, width:]}
            converted += [(f"blk.{layer}.ffn_{part}_exps.weight", array.copy()) for part, array in parts.items()]
            continue
        if architecture in ("llama", "smollm3") and re.search(r"[qk]_proj", name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            split = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
            array = split.swapaxes(1, 2).reshape(array.shape)
        if architecture in ("gemma2", "gemma3") and name.endswith("norm.weight"):
            array = array + 1
        converted.append((names.get_name(name, try_suffixes=(".weight", ".bias")), array.copy()))
    return converted
