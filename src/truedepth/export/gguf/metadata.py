"""The metadata of a GGUF file: what its model is, in llama.cpp's keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from truedepth.models.gguf.architectures import COMMON_KEYS

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedConfig

    from truedepth.export.gguf.layout import Layout
    from truedepth.export.gguf.rotary import Rotary


def context_of(config: PreTrainedConfig) -> tuple[int, str | None]:
    """The longest context in which llama.cpp computes what the model computes, and why it is shorter than the model's.

    The architectures that are written here have no sliding windows in llama.cpp.
    """
    window, context = getattr(config, "sliding_window", None), int(config.max_position_embeddings)
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    if not window or not slides or window >= context:
        return context, None
    return int(window), (
        f"the context is limited to the model's sliding window of {window} tokens: llama.cpp has no windows in "
        f"this architecture, and would compute something else beyond"
    )


def model_metadata(config: PreTrainedConfig, layout: Layout, rotary: Rotary) -> dict[str, Any]:
    """Keys of the architecture, without its prefix."""
    values: dict[str, Any] = {
        key: getattr(config, name)
        for key, name in (COMMON_KEYS | layout.facts.keys | layout.facts.optional_keys).items()
        if getattr(config, name, None) is not None
    }
    widths = {
        "attention.head_count": layout.heads,
        "attention.head_count_kv": layout.kv_heads,
        "feed_forward_length": layout.intermediate,
    }
    values |= {key: list(entries) if layout.mixed else entries[0] for key, entries in widths.items()}
    values |= {
        "block_count": len(layout.heads),
        "context_length": context_of(config)[0],
        "attention.key_length": layout.head_dim,
        "attention.value_length": layout.head_dim,
        "vocab_size": config.vocab_size,
    }
    if layout.architecture == "phi3":
        values["attention.sliding_window"] = 0  # none, which its converter writes as a number
    return values | rotary.keys


def write_values(writer: GGUFWriter, values: dict[str, Any], prefix: str) -> None:
    """Write numbers, strings and lists of whole numbers under `prefix.key`."""
    for key, value in values.items():
        match value:
            case bool():
                writer.add_bool(f"{prefix}.{key}", value)
            case int():
                writer.add_uint32(f"{prefix}.{key}", value)
            case float():
                writer.add_float32(f"{prefix}.{key}", value)
            case str():
                writer.add_string(f"{prefix}.{key}", value)
            case _:
                writer.add_array(f"{prefix}.{key}", value)
