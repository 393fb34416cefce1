"""Numbers of a file that no model has are refused by one sentence, before anything is built by them."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from truedepth.errors import ModelLoadError, UnsupportedModelError
from truedepth.models.loading.load import load, load_shapes

Make = Callable[..., Any]

_SPARE = 1 << 30
"""Bytes that a refusal may take at most."""


@pytest.fixture
def bounded() -> Iterator[None]:
    """Within it a test may take little memory and time."""
    import torch
    import transformers  # noqa: F401

    torch.ones(64, 64) @ torch.ones(64, 64)  # what threads and kernels take
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _SPARE, hard))

    def late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def refused(read: Callable[..., Any], path: Path) -> str:
    with pytest.raises((ModelLoadError, UnsupportedModelError)) as raised:
        read(str(path))
    message = str(raised.value)
    assert "\n" not in message
    return message


def edit(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


SIZES = ("num_hidden_layers", "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "head_dim")


@pytest.mark.usefixtures("bounded")
class TestAConfiguration:
    @pytest.mark.parametrize("value", [10**9, 10**30, 0, -1, 2.5, "6", True, [6]])
    @pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
    def test_sizes_that_cannot_be(self, family: str, value: Any, checkpoint: Make) -> None:
        folder = checkpoint(family)
        config = (folder / "config.json").read_text()
        for name in (*SIZES, "num_key_value_heads", "max_position_embeddings"):
            if name == "max_position_embeddings" and value == 10**9:
                continue  # a longer context than any, and no harm
            for read in (load, load_shapes):
                (folder / "config.json").write_text(config)
                assert f"says {name} {value!r}, which must be a whole number" in refused(
                    read, edit(folder, **{name: value})
                )

    @pytest.mark.parametrize("layers", [7, 1000, 10_000])
    def test_more_layers_than_there_are_weights(self, layers: int, checkpoint: Make) -> None:
        for shard_size in ("1GB", "50KB"):
            folder = checkpoint("qwen2", max_shard_size=shard_size)
            message = refused(load, edit(folder, num_hidden_layers=layers, layer_types=None))
            assert f"num_hidden_layers {layers}, which must be at most 6, of which the weights have" in message
            (folder / "model.safetensors").unlink(missing_ok=True)

    @pytest.mark.parametrize(
        ("name", "value"),
        [("vocab_size", 10**7), ("hidden_size", 10**6), ("intermediate_size", 10**7), ("num_attention_heads", 8)],
    )
    def test_sizes_that_are_not_those_of_the_weights(self, name: str, value: int, checkpoint: Make) -> None:
        assert "has the shape" in refused(load, edit(checkpoint("llama"), **{name: value}, head_dim=8))

    @pytest.mark.parametrize("count", [10**9, 10**5, 0, -1])
    def test_experts(self, count: int, checkpoint: Make) -> None:
        message = refused(load, edit(checkpoint("mixtral"), num_local_experts=count))
        assert "num_local_experts" in message or "experts.gate_up_proj" in message

    def test_heads_that_do_not_divide(self, checkpoint: Make) -> None:
        message = refused(load, edit(checkpoint("llama"), num_key_value_heads=3))
        assert "num_key_value_heads 3, which must be a divisor of its 4 attention heads" in message

    @pytest.mark.parametrize(
        ("rotary", "named"),
        [
            ({"rope_theta": float("nan")}, "rope_theta nan"),
            ({"rope_theta": float("inf")}, "rope_theta inf"),
            ({"rope_theta": -1.0}, "rope_theta -1.0"),
            ({"rope_theta": "1e4"}, "rope_theta '1e4'"),
            ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "rope_scaling.factor 0"),
            ({"rope_scaling": {"type": "linear", "factor": "4"}}, "rope_scaling.factor '4'"),
            ({"rope_scaling": {"rope_type": "yarn", "factor": float("inf")}}, "rope_scaling.factor inf"),
            (
                {"rope_scaling": {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 0}},
                "original_max_position_embeddings 0",
            ),
            ({"rope_scaling": [4]}, r"rope_scaling [4]"),
            ({"rope_scaling": {"rope_type": "no-such", "factor": 2.0}}, "no-such"),
        ],
    )
    def test_rotary_embeddings(self, rotary: dict[str, Any], named: str, checkpoint: Make) -> None:
        folder = checkpoint("llama")
        config = json.loads((folder / "config.json").read_text())
        config.pop("rope_parameters")
        (folder / "config.json").write_text(json.dumps(config | rotary))
        for read in (load, load_shapes):
            assert named in refused(read, folder)


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("embedding_length", 2**31),
        ("feed_forward_length", 2**31),
        ("feed_forward_length", 10**6),
        ("attention.head_count", 2**31),
        ("attention.head_count_kv", 2**31),
        ("attention.key_length", 2**31),
        ("context_length", 0),
    ],
)
def test_a_gguf_file(key: str, value: int, tiny_model: Make, write_gguf: Make) -> None:
    def change(writer: Any) -> None:
        writer.kv_data[0].pop(f"llama.{key}")
        writer.add_uint32(f"llama.{key}", value)

    message = refused(load, write_gguf(tiny_model("llama"), edit=change))
    assert "; download the file again" in message or "another width" in message
