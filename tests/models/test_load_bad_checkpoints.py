"""Checkpoints that are incomplete, truncated or corrupt are refused with what is wrong and what to do."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from truedepth.errors import ModelLoadError, UnsupportedModelError
from truedepth.models.loading.load import load

Make = Callable[..., Any]


@pytest.fixture
def folder(checkpoint: Make) -> Path:
    return Path(checkpoint("llama"))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder: Path, message: str, error: type[Exception] = ModelLoadError) -> None:
    with pytest.raises(error, match=message) as raised:
        load(str(folder))
    assert "\n" not in str(raised.value)


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    refused(folder, r"has no config\.json; give a folder that save_pretrained wrote")


def test_a_folder_with_a_gguf_file_says_to_give_the_file(tmp_path: Path) -> None:
    (tmp_path / "model.Q4.gguf").write_bytes(b"GGUF")
    refused(tmp_path, r"give its path: .*model\.Q4\.gguf")


def test_an_adapter_says_what_it_is(tmp_path: Path, folder: Path) -> None:
    """By itself, as PEFT saves it, and beside a model."""
    for checkpoint in (tmp_path, folder):
        (checkpoint / "adapter_config.json").write_text("{}")
        refused(checkpoint, "holds a PEFT adapter for its base model.*PeftModel.from_pretrained.*merge_and_unload")
        (checkpoint / "adapter_config.json").write_text(
            '{"peft_type": "LOHA", "base_model_name_or_path": "some/model", "task_type": "CAUSAL_LM"}'
        )
        refused(checkpoint, "holds a PEFT adapter of kind LOHA for some/model")
        (checkpoint / "adapter_config.json").write_text("[]")
        refused(checkpoint, "adapter_config.json is not a JSON object")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"config\.json is not JSON"),
        ("[]", r"config\.json is not a JSON object"),
        ("{}", "has no 'model_type'"),
        ('{"model_type": 7}', "has no 'model_type'"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "says hidden_size 'wide', which must be a whole number"),
        ('{"model_type": "llama", "hidden_size": 33, "num_attention_heads": 4}', "not a multiple"),
        (
            '{"model_type": "llama", "num_hidden_layers": -3}',
            "says num_hidden_layers -3, which must be a whole number from 1",
        ),
        ('{"model_type": "llama", "hidden_act": "no-such-function"}', "makes no llama model"),
    ],
)
def test_malformed_config(text: str, message: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    refused(folder, message)


def test_config_that_is_not_text(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe\x00{")
    refused(folder, r"config\.json is not JSON")


@pytest.mark.parametrize("model_type", ["gpt2", "no_such_model"])
def test_unknown_family_is_refused_before_the_weights(model_type: str, folder: Path) -> None:
    edit_config(folder, model_type=model_type)
    (folder / "model.safetensors").unlink()
    refused(folder, rf"'{model_type}' is not supported; supported model types: .*llama", UnsupportedModelError)


def test_remote_code_does_not_run_for_an_unknown_family(folder: Path) -> None:
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    edit_config(folder, model_type="evil", auto_map={"AutoConfig": "evil.Config"})
    refused(folder, "'evil' is not supported", UnsupportedModelError)


def test_remote_code_runs_only_when_trusted(folder: Path) -> None:
    mark = folder / "ran"
    (folder / "own.py").write_text(
        f"open({str(mark)!r}, 'w').close()\n"
        "from transformers import LlamaForCausalLM\n"
        "class Own(LlamaForCausalLM):\n    pass\n"
    )
    edit_config(folder, auto_map={"AutoModelForCausalLM": "own.Own"})
    load(str(folder))
    assert not mark.exists()
    assert type(load(str(folder), trust_remote_code=True).model).__name__ == "Own"
    assert mark.exists()


def test_quantised_checkpoints_are_refused(folder: Path) -> None:
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    refused(folder, "are quantised", UnsupportedModelError)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, "has no weights")


def test_pickle_weights_are_not_read(folder: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (shutil.rmtree, (str(folder),))

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    refused(folder, r"only as pickle \(pytorch_model\.bin\).*convert it once")
    assert folder.is_dir()


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights(keep: int, folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()[:keep]
    path.write_bytes(content)
    refused(folder, rf"model\.safetensors is truncated or corrupt: .*has {len(content)} bytes")


def test_corrupt_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[8:20] = b"not json at "
    path.write_bytes(content)
    refused(folder, "truncated or corrupt")
    content[:8] = b"\xff" * 8
    path.write_bytes(content)
    refused(folder, "truncated or corrupt")


def test_missing_tensors_are_not_filled_with_random_numbers(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, path, {"format": "pt"})
    refused(folder, r"lack 1 of the model's tensors: model\.layers\.3\.mlp\.up_proj\.weight")


def test_tensors_of_another_shape(folder: Path) -> None:
    edit_config(folder, intermediate_size=64)
    refused(folder, r"_proj\.weight in .* has the shape \(.*48.*\), but config\.json asks for \(.*64.*\)")


def test_missing_shard(checkpoint: Make) -> None:
    folder = checkpoint("qwen2", max_shard_size="50KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    shards[1].unlink()
    refused(folder, rf"lacks 1 of {len(shards)} weight files: {shards[1].name}")


def test_truncated_shard(checkpoint: Make) -> None:
    folder = checkpoint("qwen2", max_shard_size="50KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-10])
    refused(folder, f"{shard.name} is truncated or corrupt")


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_malformed_index(text: str, checkpoint: Make) -> None:
    folder = checkpoint("qwen2", max_shard_size="50KB")
    (folder / "model.safetensors.index.json").write_text(text)
    refused(folder, r"model\.safetensors\.index\.json (is not JSON|has no 'weight_map')")


def test_an_index_that_leads_out_of_its_folder(checkpoint: Make) -> None:
    folder = checkpoint("qwen2", max_shard_size="50KB")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name = next(iter(index["weight_map"]))
    for outside in ("../outside.safetensors", "/outside.safetensors", "within/outside.safetensors"):
        index["weight_map"][name] = outside
        path.write_text(json.dumps(index))
        refused(folder, f"names weight files that are not in its folder: {outside}")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_damaged_json(name: str, folder: Path) -> None:
    path = folder / name
    deep = '{"a":' * 100_000 + "1" + "}" * 100_000
    for content, message in {
        deep: "values lie too deep in each other",
        "": "is not JSON",
        "[]": "no|not a JSON object",
    }.items():
        path.write_text(content)
        refused(folder, f"{name} .*{message}")
    path.unlink()
    path.symlink_to(folder / "nowhere")
    refused(folder, f"cannot read .*{name}: No such file")
    path.unlink()
    path.mkdir()
    refused(folder, f"cannot read .*{name}: it is a folder")


def test_ends_of_text_that_are_no_tokens(folder: Path) -> None:
    path = folder / "generation_config.json"
    for wrong in ("x", 1.5, [2, "x"]):
        path.write_text(json.dumps({"eos_token_id": wrong}))
        refused(folder, r"generation_config\.json says eos_token_id .*which must be a token's number")


def test_code_of_a_tokenizer_is_asked_for_by_our_options(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    own = {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    refused(folder, "needs Python code that comes with it; .* --trust-remote-code, in Python by trust_remote_code=True")


def test_deep_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    refused(folder, "tokenizer in .* cannot be read: values lie too deep in each other")


def test_no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    refused(folder, r"has no tokenizer \(none of tokenizer\.json")


def test_malformed_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    refused(folder, "the tokenizer in .* cannot be read")
