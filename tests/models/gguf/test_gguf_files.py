"""GGUF files that are truncated, corrupt, or not GGUF at all are refused with what is wrong and where."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from truedepth.errors import ModelLoadError, TruedepthError, UnsupportedModelError
from truedepth.models.gguf.architectures import config_of
from truedepth.models.gguf.file import read_gguf
from truedepth.models.loading.load import load

Make = Callable[..., Any]


@pytest.fixture
def whole(tiny_model: Make, write_gguf: Make) -> Path:
    """An intact file."""
    return Path(write_gguf(tiny_model("llama")))


def test_header_of_an_intact_file(whole: Path) -> None:
    import gguf

    file = read_gguf(whole)
    reader = gguf.GGUFReader(whole)
    assert file.architecture == "llama"
    assert file.get("block_count") == 6
    assert file.metadata["tokenizer.ggml.tokens"][:3] == ["<pad>", "<s>", "</s>"]
    assert {name: info.offset for name, info in file.tensors.items()} == {
        tensor.name: tensor.data_offset for tensor in reader.tensors
    }
    for tensor in reader.tensors:
        assert (file.read(tensor.name).ravel() == tensor.data.ravel()).all()
        assert file.read(tensor.name).flags.writeable


def test_other_files_are_not_gguf(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    for content in (b"", b"GG", b"PK\x03\x04 a zip"):
        path.write_bytes(content)
        with pytest.raises(ModelLoadError, match="is not a GGUF file"):
            load(str(path))


def test_truncated_metadata(whole: Path) -> None:
    content = whole.read_bytes()
    for length in (5, 12, 30, 200, 600):
        whole.write_bytes(content[:length])
        with pytest.raises(ModelLoadError, match=rf"truncated or corrupt: .* the file has {length} bytes"):
            load(str(whole))


def test_truncated_tensors(whole: Path) -> None:
    content = whole.read_bytes()
    whole.write_bytes(content[:-500])
    with pytest.raises(ModelLoadError, match=r"tensor '.*' should end at byte .* Download it again"):
        load(str(whole))


def test_other_versions_and_byte_orders(whole: Path) -> None:
    content = whole.read_bytes()
    for version, message in ((struct.pack("<I", 1), "version 1"), (struct.pack(">I", 3), "big-endian")):
        whole.write_bytes(content[:4] + version + content[8:])
        with pytest.raises(UnsupportedModelError, match=message):
            load(str(whole))


def test_absurd_counts_end_with_the_file(whole: Path) -> None:
    content = whole.read_bytes()
    for at in (8, 16):
        whole.write_bytes(content[:at] + struct.pack("<Q", 2**60) + content[at + 8 :])
        with pytest.raises(ModelLoadError, match="truncated or corrupt"):
            read_gguf(whole)


def test_unknown_tensor_type(tiny_model: Make, write_gguf: Make, whole: Path) -> None:
    content = whole.read_bytes()
    name = b"output_norm.weight"
    # After the name: dimensions (4 bytes), one length (8), the type (4).
    at = content.index(name) + len(name) + 12
    whole.write_bytes(content[:at] + struct.pack("<I", 4242) + content[at + 4 :])
    with pytest.raises(UnsupportedModelError, match=r"'output_norm\.weight' .* has the ggml type 4242"):
        load(str(whole))


def test_no_architecture(whole: Path) -> None:
    content = whole.read_bytes()
    whole.write_bytes(content.replace(b"general.architecture", b"general.architectury"))
    with pytest.raises(ModelLoadError, match=r"no 'general\.architecture'"):
        load(str(whole))


def test_a_directory_or_an_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="cannot read"):
        read_gguf(tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_to_the_header_is_our_error_or_harmless(data: st.DataObject, whole: Path) -> None:
    content = bytearray(whole.read_bytes())
    header = content.index(b"blk.0.attn_q.weight") + 200
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header))] = data.draw(st.integers(0, 255))
    damaged = whole.with_name("damaged.gguf")
    damaged.write_bytes(content)
    try:
        config_of(read_gguf(damaged))
    except TruedepthError as error:
        assert str(damaged) in str(error)
