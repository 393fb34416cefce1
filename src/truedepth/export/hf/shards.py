"""Weights of a checkpoint written shard by shard, so that memory holds one shard's tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from truedepth.errors import OutputError
from truedepth.models.loading.checkpoint import INDEX, WEIGHTS
from truedepth.records.messages import one_line

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST_SHARD = 256 * 2**20
MOST_SHARDS = 40


def shard_bytes(total: int) -> int:
    """How large shards of a checkpoint of `total` bytes are: a few layers, and not too many files."""
    return max(SMALLEST_SHARD, -(-total // MOST_SHARDS))


class ShardWriter:
    """Takes tensors one by one and writes them as safetensors files, with transformers' index.

    Args:
        folder: where they go.
        limit: bytes of a shard; a single larger tensor is a shard of its own.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._waiting: dict[str, Tensor] = {}
        self._waiting_bytes = 0
        self._shards: list[list[str]] = []
        self.nbytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Take one tensor; writes what waits once it is enough.

        Raises:
            OutputError: a shard cannot be written.
        """
        if self._waiting and self._waiting_bytes + tensor.nbytes > self._limit:
            self._flush()
        self._waiting[name] = tensor.contiguous()
        self._waiting_bytes += tensor.nbytes
        self.nbytes += tensor.nbytes

    def finish(self) -> None:
        """Write the rest, and give the files the names that transformers looks for.

        Raises:
            OutputError: see `add`.
        """
        self._flush()
        if len(self._shards) == 1:
            self._path(0).rename(self._folder / WEIGHTS)
            return
        file_of: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            file = f"model-{number + 1:05d}-of-{len(self._shards):05d}.safetensors"
            self._path(number).rename(self._folder / file)
            file_of |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self.nbytes}, "weight_map": file_of}
        (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _flush(self) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        if not self._waiting:
            return
        path = self._path(len(self._shards))
        try:
            save_file(self._waiting, path, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OutputError(
                f"cannot write the weights: {one_line(error)}; free some space, or write to another disk"
            ) from error
        self._shards.append(list(self._waiting))
        self._waiting, self._waiting_bytes = {}, 0

    def _path(self, number: int) -> Path:
        return self._folder / f"shard-{number}.safetensors"
