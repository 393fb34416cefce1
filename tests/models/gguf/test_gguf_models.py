"""A GGUF file loads to the model that it was written from, for every family that GGUF can express."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from truedepth.errors import ModelLoadError, UnsupportedModelError
from truedepth.models.loading.load import load

Make = Callable[..., Any]

# general.architecture of each family, and what its tiny model must have for a GGUF file to express it.
CASES = {
    "llama": ("llama", {}),
    "mistral": ("llama", {"sliding_window": None}),
    "mixtral": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3_moe": ("qwen3moe", {"norm_topk_prob": True}),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 4}),
    "phi3": ("phi3", {}),
    "olmo2": ("olmo2", {}),
    "gemma2": ("gemma2", {}),
    "gemma3": ("gemma3", {}),
}


def logits(model: Any, ids: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(ids).logits


def test_every_family_has_a_case() -> None:
    from truedepth.families import all_families

    assert {family.name for family in all_families()} == set(CASES)


@pytest.mark.parametrize("family", CASES)
def test_logits_equal_the_source(family: str, tiny_model: Make, token_ids: Make, write_gguf: Make) -> None:
    architecture, overrides = CASES[family]
    source = tiny_model(family, **overrides)
    loaded = load(str(write_gguf(source, architecture)))
    ids = token_ids(2, 24)
    assert (logits(loaded.model, ids) - logits(source, ids)).abs().max() <= 1e-5
    assert not loaded.model.training


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gemma3"])
def test_saved_again_it_reloads_with_identical_logits(
    family: str, tiny_model: Make, token_ids: Make, write_gguf: Make, tmp_path: Path
) -> None:
    architecture, overrides = CASES[family]
    loaded = load(str(write_gguf(tiny_model(family, **overrides), architecture)))
    loaded.model.save_pretrained(tmp_path / "saved")
    loaded.tokenizer.save_pretrained(tmp_path / "saved")
    again = load(str(tmp_path / "saved"))
    ids = token_ids(1, 20)
    assert logits(again.model, ids).equal(logits(loaded.model, ids))
    text = "the  an\n\n7."
    assert again.tokenizer(text).input_ids == loaded.tokenizer(text).input_ids
    assert again.tokenizer.chat_template == loaded.tokenizer.chat_template
    assert again.model.config.eos_token_id == loaded.tokenizer.eos_token_id == 2


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"head_dim": 16}),
        ("qwen3", {"head_dim": 16, "attention_bias": True}),
        ("gemma3", {"sliding_window": 4}),
        ("phi3", {"hidden_size": 64, "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    ],
)
def test_options_of_a_family_carry_over(
    family: str, overrides: dict[str, Any], tiny_model: Make, token_ids: Make, write_gguf: Make
) -> None:
    source = tiny_model(family, **overrides)
    loaded = load(str(write_gguf(source, CASES[family][0])))
    ids = token_ids(2, 24)
    assert (logits(loaded.model, ids) - logits(source, ids)).abs().max() <= 1e-5
    assert loaded.model.config.tie_word_embeddings == source.config.tie_word_embeddings


def scaling(writer: Any, kind: str, **values: Any) -> None:
    writer.add_string(f"{writer.arch}.rope.scaling.type", kind)
    for key, value in values.items():
        add = writer.add_uint32 if isinstance(value, int) else writer.add_float32
        add(f"{writer.arch}.rope.scaling.{key}", value)


def test_linear_and_yarn_scaling_carry_over(tiny_model: Make, token_ids: Make, write_gguf: Make) -> None:
    ids = token_ids(1, 40)
    linear = tiny_model("llama", rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4})
    path = write_gguf(linear, edit=lambda writer: scaling(writer, "linear", factor=4.0))
    assert (logits(load(str(path)).model, ids) - logits(linear, ids)).abs().max() <= 1e-5

    parameters = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "rope_theta": 1e4,
    }
    yarn = tiny_model("qwen2", rope_parameters=parameters)
    path = write_gguf(
        yarn, "qwen2", edit=lambda writer: scaling(writer, "yarn", factor=4.0, original_context_length=32)
    )
    assert (logits(load(str(path)).model, ids) - logits(yarn, ids)).abs().max() <= 1e-5


def test_llama_3_scaling_is_read_back_from_its_factors(tiny_model: Make, token_ids: Make, write_gguf: Make) -> None:
    # Computed by transformers' own function, as a converter does: the file has the factors only.
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    source = tiny_model("llama", head_dim=32, rope_parameters=parameters)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](source.config, "cpu")
    plain = 5e5 ** -(scaled.new_tensor(range(0, 32, 2)) / 32)
    factors = (plain / scaled).numpy()
    path = write_gguf(source, edit=lambda writer: writer.add_tensor("rope_freqs.weight", factors))
    loaded = load(str(path))
    ids = token_ids(1, 60)
    assert loaded.model.config.rope_parameters["factor"] == pytest.approx(8.0)
    assert (logits(loaded.model, ids) - logits(source, ids)).abs().max() <= 1e-5

    unlike = factors * 1.5
    path = write_gguf(source, edit=lambda writer: writer.add_tensor("rope_freqs.weight", unlike))
    with pytest.raises(UnsupportedModelError, match="not Llama 3's"):
        load(str(path))


def test_long_rope_of_phi3_carries_over(tiny_model: Make, token_ids: Make, write_gguf: Make) -> None:
    import numpy as np

    short, long = [1.0, 1.5, 2.0, 3.0], [1.0, 2.0, 4.0, 8.0]
    parameters = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": short,
        "long_factor": long,
        "original_max_position_embeddings": 32,
    }
    source = tiny_model("phi3", rope_parameters=parameters, original_max_position_embeddings=32)

    def edit(writer: Any) -> None:
        writer.add_rope_scaling_orig_ctx_len(32)
        # As converters compute it: llama.cpp takes 1 where the file does not say.
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(128 / 32) / math.log(32)))
        writer.add_tensor("rope_factors_short.weight", np.array(short, dtype=np.float32))
        writer.add_tensor("rope_factors_long.weight", np.array(long, dtype=np.float32))

    loaded = load(str(write_gguf(source, "phi3", edit=edit)))
    for length in (20, 60):
        ids = token_ids(1, length)
        assert (logits(loaded.model, ids) - logits(source, ids)).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1"])
def test_quantised_weights_are_dequantised(kind: str, tiny_model: Make, write_gguf: Make) -> None:
    import gguf

    source = tiny_model("qwen2", intermediate_size=64)
    stored = gguf.GGMLQuantizationType[kind]
    loaded = load(str(write_gguf(source, "qwen2", quantise=stored)))
    exact = dict(source.named_parameters())
    for name, parameter in loaded.model.named_parameters():
        values = exact[name].detach().numpy()
        if values.ndim > 1:
            values = gguf.quants.dequantize(gguf.quants.quantize(values, stored), stored)
        assert (parameter.detach().numpy() == values).all(), name


def test_dtype_is_that_asked_for(tiny_model: Make, write_gguf: Make) -> None:
    import torch

    loaded = load(str(write_gguf(tiny_model("llama"))), dtype="bfloat16")
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    assert loaded.model.config.dtype == torch.bfloat16


def test_the_end_of_a_turn_stops_generation_too(tiny_model: Make, write_gguf: Make) -> None:
    loaded = load(str(write_gguf(tiny_model("llama"), edit=lambda writer: writer.add_eot_token_id(4))))
    assert loaded.model.generation_config.eos_token_id == [2, 4]
    assert loaded.model.generation_config.pad_token_id == loaded.tokenizer.pad_token_id == 0


def test_unsupported_architecture_is_refused_by_name(tiny_model: Make, write_gguf: Make) -> None:
    import gguf

    path = write_gguf(tiny_model("llama"))
    mamba = path.with_name("mamba.gguf")
    writer = gguf.GGUFWriter(mamba, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UnsupportedModelError, match=r"'mamba'.*supported: llama, qwen2"):
        load(str(mamba))


@pytest.mark.parametrize(
    ("family", "edit", "message"),
    [
        ("olmo2", lambda writer: writer.add_sliding_window(16), "is therefore Olmo 3"),
        ("llama", lambda writer: scaling(writer, "su"), "scales positions by 'su'"),
        ("llama", lambda writer: writer.add_uint32("split.count", 3), "one of 3 parts"),
        ("llama", lambda writer: writer.add_array("llama.feed_forward_length", [48] * 5 + [32]), "by layer"),
    ],
)
def test_what_transformers_cannot_express_is_refused(
    family: str, edit: Callable[[Any], None], message: str, tiny_model: Make, write_gguf: Make
) -> None:
    def change(writer: Any) -> None:
        # A second value of a key goes in place of the first.
        writer.kv_data[0].pop(f"{writer.arch}.feed_forward_length") if "by layer" in message else None
        edit(writer)

    path = write_gguf(tiny_model(family), family, edit=change)
    with pytest.raises(UnsupportedModelError, match=message):
        load(str(path))


def test_half_a_rotary_embedding_is_refused(tiny_model: Make, write_gguf: Make) -> None:
    def half(writer: Any) -> None:
        writer.kv_data[0].pop("llama.rope.dimension_count")
        writer.add_rope_dimension_count(4)

    with pytest.raises(UnsupportedModelError, match="rotates 4 of 8 dimensions"):
        load(str(write_gguf(tiny_model("llama"), edit=half)))


def test_unused_tensors_are_refused_rather_than_dropped(tiny_model: Make, write_gguf: Make) -> None:
    import numpy as np

    def extra(writer: Any) -> None:
        writer.add_tensor("blk.0.attn_sinks.weight", np.ones(4, dtype=np.float32))

    with pytest.raises(UnsupportedModelError, match=r"no place for: blk\.0\.attn_sinks\.weight"):
        load(str(write_gguf(tiny_model("llama"), edit=extra)))


def test_missing_tensors_are_refused(tiny_model: Make, write_gguf: Make) -> None:
    path = write_gguf(tiny_model("llama"), replace=lambda name, array: None if name == "blk.2.ffn_up.weight" else array)
    with pytest.raises(ModelLoadError, match=r"lacks 1 of the model's tensors: blk\.2\.ffn_up\.weight"):
        load(str(path))


def test_tensors_of_the_wrong_shape_are_refused(tiny_model: Make, write_gguf: Make) -> None:
    path = write_gguf(
        tiny_model("llama"),
        replace=lambda name, array: array[:-8] if name == "blk.2.ffn_up.weight" else array,
    )
    with pytest.raises(ModelLoadError, match=r"'blk\.2\.ffn_up\.weight'.*\(40, 32\).*\(48, 32\)"):
        load(str(path))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("block_count", 2**31 - 1, "says that its model has 2147483647 layers, but holds tensors of 6"),
        ("block_count", 5, "says that its model has 5 layers, but holds tensors of 6"),
        ("attention.head_count", 0, "says num_attention_heads 0, which must be a whole number from 1"),
        ("attention.head_count_kv", None, None),
        ("embedding_length", None, "lack the number 'llama.embedding_length'"),
        ("attention.head_count", 5, "num_key_value_heads 4, which must be a divisor of its 5 attention heads"),
    ],
)
def test_impossible_metadata_are_refused(
    key: str, value: int | None, message: str | None, tiny_model: Make, write_gguf: Make
) -> None:
    def change(writer: Any) -> None:
        writer.kv_data[0].pop(f"llama.{key}")
        if value is not None:
            writer.add_uint32(f"llama.{key}", value)

    path = write_gguf(tiny_model("llama", num_key_value_heads=4), edit=change)
    if message is None:
        # As many heads for keys and values as for queries is what a missing count means.
        assert load(str(path)).model.config.num_key_value_heads == 4
    else:
        with pytest.raises(ModelLoadError, match=message):
            load(str(path))


def test_types_that_cannot_be_dequantised_are_named(tiny_model: Make, write_gguf: Make) -> None:
    import gguf
    import numpy as np

    def replace(name: str, array: Any) -> Any:
        return array.astype(np.float64) if name == "blk.0.ffn_up.weight" else array

    assert gguf.GGMLQuantizationType.F64 == 28
    with pytest.raises(UnsupportedModelError, match=r"'blk\.0\.ffn_up\.weight'.*stored as F64"):
        load(str(write_gguf(tiny_model("llama"), replace=replace)))
