"""The GGUF architectures that truedepth reads, as data, and the transformers configuration of a file.

The facts follow llama.cpp's converters (its folder `conversion`) and its loaders: what a converter writes is
read back here. Whatever a file says that the transformers model cannot express is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from truedepth.errors import ModelLoadError, UnsupportedModelError
from truedepth.models.configuration import check_numbers
from truedepth.models.gguf.keys import check_keys
from truedepth.models.gguf.rotary import FREQUENCY_FACTORS, LONG_FACTORS, SHORT_FACTORS, rope_parameters
from truedepth.models.gguf.tokenizer import special_token
from truedepth.records.messages import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from truedepth.models.gguf.file import GgufFile

# Keys of every architecture, after its prefix, and their names in a transformers configuration.
COMMON_KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
DENSE_KEYS = {"feed_forward_length": "intermediate_size"}
# Keys after `tokenizer.ggml.`, and their names in a configuration.
TOKEN_IDS = {
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "padding_token_id": "pad_token_id",
}
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one `general.architecture` becomes one transformers model type.

    Attributes:
        model_type: `config.model_type` in transformers.
        keys: required metadata keys besides `COMMON_KEYS`, and their configuration names.
        optional_keys: the same for keys that a file may lack.
        constants: configuration values that llama.cpp has in its code and not in the file.
        interleaved_rotary: rows of q and k are stored in the order of llama.cpp's interleaved rotary layout.
        norm_offset: what llama.cpp adds to the weights of the norms.
        attention_scale_by_width: block counts of the models whose attention is scaled by
            hidden size / heads in place of the head size (Gemma's 27B models).
        refused_keys: metadata keys that mean another model than `model_type`, with its name.
        also_written_for: model types that are this architecture in a file, but are read as `model_type`.
        biases: tensors of a block, without `.bias`, whose biases llama.cpp reads.
        rotary_tensors: tensors of factors for rotary embedding that llama.cpp reads.
        wide: whether llama.cpp reads a model whose heads are together wider than its hidden states.
        square: whether llama.cpp reads only models whose heads are together as wide as their hidden states.
        head_required: whether llama.cpp wants the LM head in the file where it is the embedding, too.
    """

    model_type: str
    keys: dict[str, str] = field(default_factory=lambda: dict(DENSE_KEYS))
    optional_keys: dict[str, str] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    interleaved_rotary: bool = False
    norm_offset: float = 0.0
    attention_scale_by_width: tuple[int, ...] | None = None
    refused_keys: dict[str, str] = field(default_factory=dict)
    also_written_for: tuple[str, ...] = ()
    biases: tuple[str, ...] = ()
    rotary_tensors: tuple[str, ...] = ()
    wide: bool = False
    square: bool = False
    head_required: bool = False


QKV = ("attn_q", "attn_k", "attn_v")
ALL_BIASES = (*QKV, "attn_output", "ffn_gate", "ffn_up", "ffn_down")
EXPERT_KEYS = {"expert_used_count": "num_experts_per_tok"}

ARCHITECTURES = {
    "llama": Architecture(
        "llama",
        interleaved_rotary=True,
        also_written_for=("mistral",),
        biases=ALL_BIASES,
        rotary_tensors=(FREQUENCY_FACTORS,),
        wide=True,
    ),
    "qwen2": Architecture("qwen2", biases=QKV, square=True),
    "qwen3": Architecture("qwen3"),
    "qwen3moe": Architecture(
        "qwen3_moe",
        EXPERT_KEYS | {"expert_count": "num_experts", "expert_feed_forward_length": "moe_intermediate_size"},
        constants={"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []},
    ),
    "smollm3": Architecture("smollm3", constants={"no_rope_layer_interval": 4}, interleaved_rotary=True),
    "olmo2": Architecture(
        "olmo2", refused_keys={"attention.sliding_window": "Olmo 3"}, square=True, head_required=True
    ),
    "phi3": Architecture(
        "phi3",
        optional_keys={"rope.scaling.original_context_length": "original_max_position_embeddings"},
        rotary_tensors=(LONG_FACTORS, SHORT_FACTORS),
        square=True,
    ),
    "gemma2": Architecture(
        "gemma2",
        DENSE_KEYS | {"attention.sliding_window": "sliding_window"},
        {
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        norm_offset=1.0,
        attention_scale_by_width=(46,),
    ),
    "gemma3": Architecture(
        "gemma3_text",
        optional_keys={"final_logit_softcapping": "final_logit_softcapping"},
        norm_offset=1.0,
        attention_scale_by_width=(62,),
    ),
}

# Mixtral files say `llama`, and that they have experts.
MIXTRAL = Architecture(
    "mixtral", DENSE_KEYS | EXPERT_KEYS | {"expert_count": "num_local_experts"}, interleaved_rotary=True
)

MIXED_WIDTHS = "deci"
"""The architecture of a file with layers of different widths, which llama.cpp reads from arrays. It is only written."""
MIXED_WIDTHS_FACTS = Architecture(
    "llama", interleaved_rotary=True, biases=ALL_BIASES, rotary_tensors=(FREQUENCY_FACTORS,), wide=True
)


def architecture_for(model_type: str) -> tuple[str, Architecture]:
    """The architecture as which a model of some type is written, and the facts about it.

    Raises:
        UnsupportedModelError: there is none.
    """
    for name, facts in ARCHITECTURES.items():
        if model_type in (facts.model_type, *facts.also_written_for):
            return name, facts
    raise UnsupportedModelError(
        f"truedepth knows no GGUF architecture for the model type '{model_type}'; "
        f"supported: {', '.join(facts.model_type for facts in ARCHITECTURES.values())}"
    )


def architecture_of(file: GgufFile) -> Architecture:
    """The facts about a file's architecture.

    Raises:
        UnsupportedModelError: it is unknown; the message lists those supported.
    """
    if file.architecture not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{file.path} has the GGUF architecture '{file.architecture}', which truedepth does not read; "
            f"supported: {', '.join(ARCHITECTURES)}"
        )
    if file.architecture == "llama" and file.get("expert_count", 0):
        return MIXTRAL
    facts = ARCHITECTURES[file.architecture]
    for key, other in facts.refused_keys.items():
        if file.number(key, 0):
            raise UnsupportedModelError(
                f"{file.path} says '{file.architecture}.{key}' and is therefore {other}, "
                "which truedepth does not support"
            )
    return facts


def config_of(file: GgufFile) -> PreTrainedConfig:
    """The transformers configuration of the model in a GGUF file.

    Raises:
        UnsupportedModelError: the architecture, or something that the file asks of it, is not supported.
        ModelLoadError: metadata are missing or contradict each other.
    """
    from transformers import AutoConfig

    facts = architecture_of(file)
    check_keys(file)
    values: dict[str, Any] = dict(facts.constants)
    for key, name in (COMMON_KEYS | facts.keys).items():
        values[name] = file.number(key)
    _check_blocks(file, values["num_hidden_layers"])
    for key, name in facts.optional_keys.items():
        if file.get(key) is not None:
            values[name] = file.number(key)
    _check_numbers(values, file)  # and below, when all are known
    heads, width = int(values["num_attention_heads"]), int(values["hidden_size"])
    head_dim = int(file.number("attention.key_length", width // heads))
    if file.number("attention.value_length", head_dim) != head_dim:
        raise UnsupportedModelError(f"{file.path} has values of another width than keys, which is not supported")
    values["head_dim"] = head_dim
    values["num_key_value_heads"] = file.number("attention.head_count_kv", heads)
    if facts.attention_scale_by_width is not None:
        by_width = values["num_hidden_layers"] in facts.attention_scale_by_width
        values["query_pre_attn_scalar"] = width // heads if by_width else head_dim
    values |= _sliding_window(file, facts.model_type)
    values |= _of_tensors(file)
    values["rope_parameters"] = rope_parameters(file, facts.model_type, head_dim)
    values |= _token_ids(file)
    _check_numbers(values, file)
    # A configuration keeps whatever it is given; leave out what this model type has no use for.
    known = AutoConfig.for_model(facts.model_type)
    try:
        return AutoConfig.for_model(facts.model_type, **{k: v for k, v in values.items() if hasattr(known, k)})
    except Exception as error:
        # Configurations check themselves with exceptions of many classes.
        raise ModelLoadError(
            f"the metadata of {file.path} make no {facts.model_type} model: "
            f"{one_line(error)}; download the file again, or convert the model again"
        ) from error


def _check_numbers(values: dict[str, Any], file: GgufFile) -> None:
    check_numbers(values, str(file.path), remedy="download the file again, or convert the model again")


def _check_blocks(file: GgufFile, said: int | float) -> None:
    """Before a model of a mistaken number of layers is built, which could be billions."""
    found = {name.split(".")[1] for name in file.tensors if name.startswith("blk.")}
    if found != {str(block) for block in range(len(found))} or len(found) != said:
        raise ModelLoadError(
            f"{file.path} says that its model has {said} layers, but holds tensors of {len(found)}; "
            "download the file again, or convert the model again"
        )


def _of_tensors(file: GgufFile) -> dict[str, Any]:
    """What only the tensors tell: the size of the vocabulary, a tied head, biases."""
    if EMBEDDING not in file.tensors:
        raise ModelLoadError(f"{file.path} has no tensor '{EMBEDDING}'; download it again")
    return {
        "vocab_size": file.tensors[EMBEDDING].shape[0],
        "tie_word_embeddings": OUTPUT not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
    }


def _token_ids(file: GgufFile) -> dict[str, int | None]:
    return {name: special_token(file, key) for key, name in TOKEN_IDS.items()}


def _sliding_window(file: GgufFile, model_type: str) -> dict[str, Any]:
    window = file.number("attention.sliding_window", 0)
    if model_type == "phi3":
        # 0 is how converters write none.
        return {"sliding_window": window or None}
    if model_type != "gemma3_text":
        return {}
    layers = int(file.number("block_count"))
    pattern = file.get("attention.sliding_window_pattern", 6)
    if not window:
        sliding = [False] * layers
    elif isinstance(pattern, list):
        sliding = [bool(entry) for entry in pattern]
    else:
        period = max(1, int(file.number("attention.sliding_window_pattern", pattern)))
        sliding = [(layer + 1) % period != 0 for layer in range(layers)]
    kinds = ["sliding_attention" if slides else "full_attention" for slides in sliding]
    return {"sliding_window": window or None, "layer_types": kinds}
