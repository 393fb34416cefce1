"""Keys and values, and hidden states, of a batch of sequences, in memory that is allocated once.

Every sequence stands at its own position. A token's entries go to its sequence's row and its own position in it, so
taking back a token is no work at all: the next token that stands there overwrites it.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from truedepth.engine.cpu.kernels import kernels_for
from truedepth.errors import DecodingError
from truedepth.models.loading.memory import available_bytes
from truedepth.records.messages import out_of_memory

_LARGE = 1 << 26
"""Bytes from which on it is asked whether they are there, which takes a moment."""


class KVCache:
    """The entries of some layers for up to `rows` sequences of up to `capacity` tokens.

    A layer's memory is allocated when it first writes, as wide as what it writes.
    """

    def __init__(self, rows: int, capacity: int) -> None:
        self.rows, self.capacity = rows, capacity
        self._held: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def bytes(self) -> int:
        """Bytes allocated."""
        return sum(held.numel() * held.element_size() for pair in self._held.values() for held in pair)

    def write(self, layer: int, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """Put the entries of new tokens into their slots.

        Args:
            keys, values: (B, H, T, head_dim).
            slots: row * capacity + position of each token, (B * T,), int64.
        """
        if layer not in self._held:
            self._held[layer] = (self._like(keys), self._like(values))
        compiled = kernels_for(keys)
        for held, new in zip(self._held[layer], (keys, values), strict=True):
            if compiled is not None:
                compiled.store(held, new, slots)
                continue
            flat = held.view(-1, *held.shape[2:])
            flat.index_copy_(0, slots, new.transpose(1, 2).reshape(-1, *held.shape[2:]))

    def _like(self, new: Tensor) -> Tensor:
        """(rows, capacity, H, head_dim): a row's tokens lie one after the other, so a step writes once.

        Zeros, since attention multiplies what it does not look at by 0, which leaves the NaN of stray memory.

        Raises:
            DecodingError: there is not enough memory.
        """
        need = self.rows * self.capacity * new.shape[1] * new.shape[3] * new.element_size()
        if need > _LARGE and need > available_bytes(new.device):
            raise self._too_large(need)
        try:
            return new.new_zeros(self.rows, self.capacity, new.shape[1], new.shape[3])
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise self._too_large(need) from None

    def _too_large(self, need: int) -> DecodingError:
        return DecodingError(
            f"the keys and values of {self.rows} sequences of up to {self.capacity} tokens do not fit into memory: "
            f"those of one layer take {2 * need / 1e9:.1f} GB; ask for fewer new tokens, or for fewer sequences at once"
        )

    def read(self, layer: int, rows: slice, span: int) -> tuple[Tensor, Tensor]:
        """The first `span` entries of some rows: keys and values, (B, H, span, head_dim) each, not copied."""
        keys, values = self._held[layer]
        return keys[rows, :span].transpose(1, 2), values[rows, :span].transpose(1, 2)

    def move_row(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` entries of one row over another row's."""
        for pair in self._held.values():
            for held in pair:
                held[target, :length] = held[source, :length]

    def keep_only(self, layers: Collection[int]) -> None:
        """Free the entries of all other layers."""
        self._held = {layer: pair for layer, pair in self._held.items() if layer in layers}

    def read_only(self) -> ReadOnlyCache:
        """The same entries for somebody who reads them only."""
        return ReadOnlyCache(self)


class ReadOnlyCache:
    """The entries of a cache, not to be written."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache

    def write(self, layer: int, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """Leave them as they are."""

    def read(self, layer: int, rows: slice, span: int) -> tuple[Tensor, Tensor]:
        return self._cache.read(layer, rows, span)


class StateTable:
    """A hidden state for each slot of up to `rows` sequences of up to `capacity` tokens; zeros where none was written.

    Memory is allocated at the first writing, as wide as what is written.
    """

    def __init__(self, rows: int, capacity: int) -> None:
        self.rows, self.capacity = rows, capacity
        self._held: Tensor | None = None

    def write(self, states: Tensor, slots: Tensor) -> None:
        """Put states, (B, T, W), into their slots: row * capacity + position, (B * T,), int64."""
        if self._held is None:
            self._held = states.new_zeros(self.rows * self.capacity, states.shape[-1])
        self._held.index_copy_(0, slots, states.flatten(0, 1))

    def read(self, slots: Tensor) -> Tensor:
        """The states in some slots: (n,), int64, to (n, W).

        Raises:
            LookupError: nothing was written yet.
        """
        if self._held is None:
            raise LookupError("no states were written yet")
        return self._held[slots]

    def move_row(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` states of one row over another row's."""
        if self._held is not None:
            held = self._held.view(self.rows, self.capacity, -1)
            held[target, :length] = held[source, :length]
