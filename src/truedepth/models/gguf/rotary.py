"""Rotary position embedding: what a GGUF file says of it, as transformers' `rope_parameters`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from truedepth.errors import UnsupportedModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from truedepth.models.gguf.file import GgufFile

DEFAULT_BASE = 10_000
FREQUENCY_FACTORS = "rope_freqs.weight"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
ROTARY_TENSORS = (FREQUENCY_FACTORS, LONG_FACTORS, SHORT_FACTORS)

# Llama 3.1 to 3.3: a converter writes the factors that these parameters give, and not the parameters.
LLAMA3: dict[str, Any] = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def rope_parameters(file: GgufFile, model_type: str, head_dim: int) -> dict[str, Any]:
    """transformers' `rope_parameters` for the model in a file.

    Raises:
        UnsupportedModelError: the file asks for a rotary embedding that transformers cannot do.
    """
    base = float(file.number("rope.freq_base", DEFAULT_BASE)) or DEFAULT_BASE
    dimensions = int(file.number("rope.dimension_count", head_dim))
    parameters: dict[str, Any] = {"rope_theta": base, **_scaling(file, base, head_dim)}
    if model_type == "phi3":
        return parameters | {"partial_rotary_factor": dimensions / head_dim}
    if dimensions != head_dim:
        raise _unsupported(file, f"rotates {dimensions} of {head_dim} dimensions of a head")
    if model_type == "gemma3_text":
        local = {"rope_type": "default", "rope_theta": float(file.number("rope.freq_base_swa", DEFAULT_BASE))}
        return {"full_attention": parameters, "sliding_attention": local}
    return parameters


def _scaling(file: GgufFile, base: float, head_dim: int) -> dict[str, Any]:
    """As llama.cpp reads it: `linear` is the type where there is none, a factor of 0 means 1."""
    kind = file.get("rope.scaling.type", "linear")
    factor = float(file.number("rope.scaling.factor", file.number("rope.scale_linear", 0.0))) or 1.0
    # What the sines and cosines are multiplied with, besides what the type does by itself.
    attention = float(file.number("rope.scaling.attn_factor", 1.0))
    if LONG_FACTORS in file.tensors:
        return {
            "rope_type": "longrope",
            "long_factor": file.read(LONG_FACTORS).tolist(),
            "short_factor": file.read(SHORT_FACTORS).tolist(),
            "original_max_position_embeddings": int(file.number("rope.scaling.original_context_length")),
            "attention_factor": attention,
        }
    if kind == "yarn" and FREQUENCY_FACTORS not in file.tensors:
        return {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": int(_original_length(file)),
            "attention_factor": attention * yarn_attention(factor),
        }
    if attention != 1.0:
        raise _unsupported(file, f"has a 'rope.scaling.attn_factor' of {attention:g} beside the type '{kind}'")
    if FREQUENCY_FACTORS in file.tensors:
        if kind not in ("none", "linear") or (kind == "linear" and factor != 1.0):
            raise _unsupported(file, f"scales positions by '{kind}' and by '{FREQUENCY_FACTORS}' at once")
        return _llama3(file, base, head_dim)
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return {"rope_type": "default"}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    raise _unsupported(file, f"scales positions by '{kind}'")


def yarn_attention(factor: float) -> float:
    """What YaRN multiplies sines and cosines with (arXiv 2309.00071), in llama.cpp and transformers alike."""
    return 0.1 * math.log(factor) + 1.0


def _original_length(file: GgufFile) -> int | float:
    return file.number("rope.scaling.original_context_length", file.number("context_length"))


def _llama3(file: GgufFile, base: float, head_dim: int) -> dict[str, Any]:
    """The parameters whose factors are the file's: the largest factor is `factor` itself."""
    import numpy as np

    stored = file.read(FREQUENCY_FACTORS)
    parameters = LLAMA3 | {"factor": float(stored.max())}
    expected = llama3_factors(base, head_dim, **parameters)
    if stored.shape != expected.shape or not np.allclose(stored, expected, rtol=1e-3):
        raise _unsupported(file, f"scales positions by a '{FREQUENCY_FACTORS}' that is not Llama 3's")
    return {"rope_type": "llama3", **parameters}


def llama3_factors(
    base: float,
    head_dim: int,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> NDArray[np.float32]:
    """What Llama 3.1 divides each frequency by, shape (head_dim / 2,): 1 for short wavelengths, `factor` for
    long ones, and in between a blend (the same function as in Meta's `apply_scaling` and transformers)."""
    import numpy as np

    frequencies = base ** -(np.arange(0, head_dim, 2) / head_dim)
    turns = original_max_position_embeddings * frequencies / (2 * math.pi)
    smooth = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0.0, 1.0)
    return np.asarray(1.0 / ((1.0 - smooth) / factor + smooth), dtype=np.float32)


def _unsupported(file: GgufFile, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{file.path} {what}, which truedepth cannot carry over from GGUF; give the model's hub id or folder"
    )
