"""What becomes of each metadata key of an architecture: it is read, it is neutral, or it is refused by name.

What llama.cpp reads for the architectures that truedepth knows follows its `llama_model::load_hparams`. The table in
docs/gguf.md says the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from truedepth.errors import UnsupportedModelError

if TYPE_CHECKING:
    from truedepth.models.gguf.file import GgufFile

READ = frozenset(
    {
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "expert_count",
        "expert_used_count",
        "expert_feed_forward_length",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "attention.sliding_window",
        "attention.sliding_window_pattern",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.freq_base_swa",
        "rope.scale_linear",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.attn_factor",
        "rope.scaling.original_context_length",
    }
)
"""Keys, after the architecture's prefix, that the model is made by."""

NEUTRAL: dict[str, str] = {
    "vocab_size": "the embedding tells it",
    "attention.layer_norm_epsilon": "these architectures have RMS norms",
    "rope.scaling.finetuned": "a note",
    "rope.scaling.yarn_attn_factor": "llama.cpp reads it in other architectures only",
    "rope.scaling.yarn_beta_fast": "llama.cpp reads it in other architectures only",
    "rope.scaling.yarn_beta_slow": "llama.cpp reads it in other architectures only",
    "rope.scaling.yarn_ext_factor": "llama.cpp reads it in other architectures only",
    "rope.scaling.yarn_log_multiplier": "llama.cpp reads it in other architectures only",
    "expert_weights_norm": "the architecture says whether it does so",
    "tensor_data_layout": "a note of old files",
}
"""Keys that change nothing, and why."""

REFUSED: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.scale": (0,),
    "attention.shared_kv_layers": (0,),
    "embedding_scale": (0, 1),
    "expert_gating_func": (0, 1),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_shared_count": (0,),
    "expert_shared_feed_forward_length": (0,),
    "expert_weights_scale": (0, 1),
    "leading_dense_block_count": (0,),
    "logit_scale": (0, 1),
    "nextn_predict_layers": (0,),
    "pooling_type": (0,),
    "residual_scale": (0, 1),
    "rope.dimension_sections": (0,),
    "rope.scaling.alpha": (0,),
    "use_parallel_residual": (False,),
}
"""Keys that mean another model, but for these values of theirs. In an array, each entry is looked at."""

LIKE: dict[str, str] = {
    "attention.key_length_swa": "attention.key_length",
    "attention.value_length_swa": "attention.value_length",
    "rope.dimension_count_swa": "rope.dimension_count",
}
"""Keys of layers with a sliding window, which must say what the key of the others says."""

_CHANGES_NUMBERS = ("attention.", "rope.")
"""Beginnings of keys of which an unknown one is refused; others that llama.cpp has no name for are of no use to it."""


def check_keys(file: GgufFile) -> None:
    """Refuse what would make another model than is read.

    Raises:
        UnsupportedModelError: with the key, its value, and what to do.
    """
    prefix = f"{file.architecture}."
    for full, value in file.metadata.items():
        key = full.removeprefix(prefix)
        if key == full or key in READ or key in NEUTRAL:
            continue
        neutral = (file.get(LIKE[key]),) if key in LIKE else REFUSED.get(key)
        entries = value if isinstance(value, list) else [value]
        if neutral is None and not key.startswith(_CHANGES_NUMBERS):
            continue
        if neutral is None or any(entry not in neutral for entry in entries):
            shown = f"{entries[:3]}" if isinstance(value, list) else f"{value}"
            raise UnsupportedModelError(
                f"{file.path} has the key '{full}' ({shown}), which changes what the model computes and which "
                "truedepth cannot carry over from GGUF; give the model's hub id or folder"
            )
