"""What a GGUF file says: metadata and tensor table, checked against the size of the file, and its tensors.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truedepth.errors import ModelLoadError, UnsupportedModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32

STRING, ARRAY = 8, 9
# Metadata value types of fixed width, as struct formats.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class _Malformed(Exception):
    """Something in the header that cannot be; the message says what and where."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor is in the file and how it is stored.

    Attributes:
        shape: in torch's order, slowest dimension first.
        ggml_type: the number of its ggml type, such as 0 for F32.
        offset: first byte, from the start of the file.
        nbytes: bytes it takes in the file.
    """

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF file whose header has been read and fits the file's size; tensors are read one by one.

    Attributes:
        path: the file.
        metadata: its key-value pairs; arrays as lists.
        typed: the same to be written again as they are: for each key the number of its type, that of its elements where
            it is an array, and the value with strings as bytes.
        tensors: its tensors by name.
    """

    path: Path
    metadata: dict[str, Any]
    typed: dict[str, tuple[int, int | None, Any]]
    tensors: dict[str, TensorInfo]
    _blob: mmap.mmap = field(repr=False)

    @property
    def architecture(self) -> str:
        """`general.architecture`, such as `llama`."""
        return str(self.metadata["general.architecture"])

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key of this architecture: `get("block_count")` reads `llama.block_count`."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def number(self, key: str, default: int | float | None = None) -> int | float:
        """A number under a key of this architecture. Where a file has one a layer, they must be equal.

        Raises:
            ModelLoadError: it is missing without a `default`, or is no number.
            UnsupportedModelError: it differs by layer.
        """
        value = self.get(key, default)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        if isinstance(value, list):
            raise UnsupportedModelError(
                f"{self.path} has a '{self.architecture}.{key}' that differs by layer, which is not supported"
            )
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise ModelLoadError(
                f"the metadata of {self.path} lack the number '{self.architecture}.{key}'; "
                "download the file again, or convert the model again"
            )
        return value

    def read(self, name: str) -> NDArray[np.float32]:
        """One tensor, dequantised to float32, in its own memory.

        Raises:
            UnsupportedModelError: it is stored in a type that gguf-py cannot dequantise.
        """
        import gguf
        import numpy as np

        info = self.tensors[name]
        kind = gguf.GGMLQuantizationType(info.ggml_type)
        stored = np.frombuffer(self._blob, np.uint8, info.nbytes, info.offset)
        rows = stored.reshape(*info.shape[:-1], -1) if info.shape else stored
        try:
            values = gguf.quants.dequantize(rows, kind)
        except NotImplementedError:
            raise UnsupportedModelError(
                f"tensor '{name}' of {self.path} is stored as {kind.name}, which gguf-py cannot dequantise; "
                "use a file quantised with another type, such as Q8_0 or Q4_K_M"
            ) from None
        # Float32 comes as a view of the read-only file.
        owned: NDArray[np.float32] = values if values.flags.writeable else values.copy()
        return owned


def read_gguf(path: Path) -> GgufFile:
    """Read the header of a GGUF file; tensor data stays on disk.

    Raises:
        ModelLoadError: the file cannot be read, is not GGUF, or is truncated or corrupt.
        UnsupportedModelError: it has another version, byte order, or is one part of several.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
            if start != MAGIC:
                raise ModelLoadError(
                    f"{path} is not a GGUF file: it starts with {start!r}, not {MAGIC!r}; "
                    "check the path, or download the file again"
                )
            blob = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ModelLoadError(f"cannot read {path}: {error.strerror}; check the path and its permissions") from None
    try:
        return _parse(path, blob)
    except _Malformed as error:
        raise ModelLoadError(
            f"{path} is truncated or corrupt: {error}; the file has {len(blob)} bytes. Download it again"
        ) from None


def _parse(path: Path, blob: mmap.mmap) -> GgufFile:
    cursor = _Cursor(blob, len(MAGIC))
    version = cursor.scalar("I", "the version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
        raise UnsupportedModelError(
            f"{path} is {'big-endian' if swapped else f'version {version}'} GGUF; "
            "truedepth reads little-endian versions 2 and 3: convert the model again with a current llama.cpp"
        )
    num_tensors = cursor.scalar("Q", "the number of tensors")
    typed = dict(cursor.typed_value() for _ in range(cursor.scalar("Q", "the number of metadata keys")))
    metadata = {key: _decoded(value) for key, (_, _, value) in typed.items()}
    if not isinstance(metadata.get("general.architecture"), str):
        raise _Malformed("the metadata have no 'general.architecture'")
    if isinstance(parts := metadata.get("split.count"), int) and parts > 1:
        raise UnsupportedModelError(
            f"{path} is one of {parts} parts of a model; "
            "join them with llama.cpp first: llama-gguf-split --merge FIRST_PART WHOLE"
        )
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0:
        raise _Malformed(f"'general.alignment' is {alignment!r}")
    entries = [cursor.tensor_entry() for _ in range(num_tensors)]
    data_start = math.ceil(cursor.position / alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, shape, ggml_type, offset in entries:
        if name in tensors:
            raise _Malformed(f"tensor '{name}' is listed twice")
        nbytes = _stored_bytes(path, name, shape, ggml_type)
        info = TensorInfo(name, shape, ggml_type, data_start + offset, nbytes)
        if info.offset + info.nbytes > len(blob):
            raise _Malformed(f"tensor '{name}' should end at byte {info.offset + info.nbytes}")
        tensors[name] = info
    return GgufFile(path, metadata, typed, tensors, blob)


def _stored_bytes(path: Path, name: str, shape: tuple[int, ...], ggml_type: int) -> int:
    import gguf

    try:
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(ggml_type)]
    except (ValueError, KeyError):
        raise UnsupportedModelError(
            f"tensor '{name}' of {path} has the ggml type {ggml_type}, which gguf-py does not know; "
            "the file is corrupt, or of a type that is newer or no longer used: take one quantised otherwise"
        ) from None
    if shape and shape[-1] % block:
        raise _Malformed(f"rows of tensor '{name}' have {shape[-1]} values, not whole blocks of {block}")
    return int(math.prod(shape) // block * size)


def _decoded(value: Any) -> Any:
    """Text of bytes, also in a list. Token strings may hold half a character; metadata that matter are plain text."""
    if isinstance(value, list):
        return [_decoded(entry) for entry in value]
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value


class _Cursor:
    """Reads the header from front to back; whatever would go past the end of the file is malformed."""

    def __init__(self, blob: mmap.mmap, position: int) -> None:
        self.blob = blob
        self.position = position

    def take(self, count: int, what: str) -> bytes:
        end = self.position + count
        if end > len(self.blob):
            raise _Malformed(f"{what} at byte {self.position} should end at byte {end}")
        taken = self.blob[self.position : end]
        self.position = end
        return taken

    def scalar(self, code: str, what: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def string(self, what: str) -> bytes:
        return self.take(self.scalar("Q", what), what)

    def typed_value(self) -> tuple[str, tuple[int, int | None, Any]]:
        """A key of the metadata; the number of its type, that of its elements where it is an array, and its value."""
        key = _decoded(self.string("a metadata key"))
        kind, what = self.scalar("I", key), f"the value of '{key}'"
        if kind != ARRAY:
            return key, (kind, None, self.values(kind, 1, what)[0])
        element, count = self.scalar("I", what), self.scalar("Q", what)
        return key, (kind, element, self.values(element, count, what, "is an array of"))

    def values(self, kind: int, count: int, what: str, has: str = "has") -> list[Any]:
        if kind == STRING:
            return [self.string(what) for _ in range(count)]
        if kind not in SCALARS:
            raise _Malformed(f"{what} {has} the unknown type {kind}")
        taken = self.take(count * struct.calcsize("<" + SCALARS[kind]), what)
        return list(struct.unpack(f"<{count}{SCALARS[kind]}", taken))

    def tensor_entry(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape in torch's order, ggml type, and offset in the data section."""
        name = _decoded(self.string("a tensor's name"))
        what = f"the entry of tensor '{name[:80]}'"
        dimensions = self.scalar("I", what)
        if dimensions > MAX_DIMENSIONS:
            raise _Malformed(f"{what} has {dimensions} dimensions")
        shape = tuple(self.scalar("Q", what) for _ in range(dimensions))
        return name, shape[::-1], self.scalar("I", what), self.scalar("Q", what)
