"""How long a text may be that a model reads and writes: its context, after the scaling of its rotary embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

BY_LENGTH = ("dynamic", "longrope")
"""Types of rotary embedding whose frequencies, beyond a length, follow the longest sequence of a pass. Batches and
parts of prompts would make them wrong, so they are used up to that length only."""


def context_length(config: PreTrainedConfig) -> int | None:
    """Tokens of a prompt and of what is written after it, as vLLM serves the model; None: the model sets no limit.

    YaRN stretches the length that the model was first trained for, and linear scaling the length that the configuration
    says. `llama3` is not to be multiplied, and neither is Gemma 3, whose parameters are by attention type: their
    configurations say the stretched length. For `BY_LENGTH`, it is the length without scaling.
    """
    text: Any = config.get_text_config()
    said: int | None = getattr(text, "max_position_embeddings", None)
    if said is None:
        return None
    rotary = _rotary(config)
    kind, factor = rotary_type(config), rotary.get("factor")
    original = rotary.get("original_max_position_embeddings") or said
    if kind in ("yarn", "linear") and factor is not None:
        return int((original if kind == "yarn" else said) * factor)
    return int(min(said, original) if kind == "longrope" else said)


def rotary_type(config: PreTrainedConfig) -> str | None:
    """The type of scaling of the rotary embedding, such as `yarn`; None where it differs by attention type."""
    kind: str | None = _rotary(config).get("rope_type")
    return kind


def _rotary(config: PreTrainedConfig) -> dict[str, Any]:
    text: Any = config.get_text_config()
    found: dict[str, Any] = getattr(text, "rope_parameters", None) or {}
    return found
