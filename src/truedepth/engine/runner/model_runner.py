"""The primitive of decoding: run a range of a plan's stages from given hidden states, over preallocated caches.

The model's own modules do the work: embedding, rotary embedding, decoder layers, final norm and head. What this file
adds is what a model's forward would compute around them, where each sequence stands at its own position.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from truedepth.engine.cpu.packing import Packing
from truedepth.engine.runner.attention import installed
from truedepth.engine.runner.caches import KVCache, ReadOnlyCache
from truedepth.families import family_of
from truedepth.models.rewire import call_layer
from truedepth.models.stages import run_group, to_logits
from truedepth.plan import Form, Stage

CacheOf = Callable[[int], KVCache | ReadOnlyCache]
"""Where a layer keeps its entries."""


@dataclass(frozen=True, slots=True)
class ForwardContext:
    """Where the tokens of one pass stand.

    Attributes:
        rows: the sequences' rows in the caches.
        positions: (B, T), int64.
        slots: where the caches take them, (B * T,), int64.
        span: how many entries of a row attention looks at.
        masks: by sliding window (None: no window) what to add to the scores, (B or 1, 1, T, span), or None where all
            is seen that `attend` shows without a mask.
        rotary: by attention type, the rotary embeddings: cosines and sines, (B, T, head_dim) each.
    """

    rows: slice
    positions: Tensor
    slots: Tensor
    span: int
    masks: Mapping[int | None, Tensor | None]
    rotary: Mapping[str, tuple[Tensor, Tensor]]

    def tensors(self) -> list[Tensor]:
        """All tensors, in a fixed order."""
        masks = [mask for mask in self.masks.values() if mask is not None]
        return [self.positions, self.slots, *masks, *(part for pair in self.rotary.values() for part in pair)]

    def with_tensors(self, tensors: Sequence[Tensor]) -> ForwardContext:
        """The same context with other tensors, in the order of `tensors`."""
        positions, slots, *others = tensors
        left = iter(others)
        masks = {window: None if mask is None else next(left) for window, mask in self.masks.items()}
        rotary = {kind: (next(left), next(left)) for kind in self.rotary}
        return replace(self, positions=positions, slots=slots, masks=masks, rotary=rotary)


@dataclass(frozen=True, slots=True)
class _Window:
    """What a layer takes for its cache: writes the pass's entries, and shows those up to its span."""

    context: ForwardContext
    cache_of: CacheOf

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        cache = self.cache_of(layer)
        cache.write(layer, keys, values, self.context.slots)
        return cache.read(layer, self.context.rows, self.context.span)


class RunStages(Protocol):
    """`ModelRunner.run`, or what stands for it."""

    def __call__(
        self, stages: Sequence[Stage], form: Form, hidden: Tensor, context: ForwardContext, cache_of: CacheOf
    ) -> Tensor: ...


class ModelRunner:
    """A model's modules, to be run stage by stage.

    Raises:
        UnsupportedModelError: the family is unknown.
    """

    def __init__(self, model: PreTrainedModel, packing: Packing | None = None) -> None:
        self.model = model
        self._packing = packing
        self.family = family_of(model.config)
        self.layers = self.family.decoder_layers(model)
        self._embedding: Any = model.get_submodule(self.family.embedding)
        self._rotary: Any = model.get_submodule(self.family.rotary)
        self.device: torch.device = model.device
        kinds = getattr(model.config, "layer_types", None) or ["full_attention"] * len(self.layers)
        self._kinds: list[str] = list(kinds)
        entries = DynamicCache(config=model.config).layers
        self._windows: list[int | None] = [getattr(entry, "sliding_window", None) for entry in entries]

    @property
    def vocabulary_size(self) -> int:
        """V: columns of the logits."""
        return int(self._embedding.weight.shape[0])  # of the head, a rank may hold a part only

    def embed(self, ids: Tensor) -> Tensor:
        """(B, T), int64, to (B, T, D)."""
        hidden: Tensor = self._embedding(ids)
        return hidden

    def logits(self, hidden: Tensor, rows: nn.Linear | None = None) -> Tensor:
        """The model's own norm and head, or some `head_rows` of it: (B, T, D) to (B, T, V) or (B, T, V')."""
        return to_logits(self.model, self.family, hidden, rows)

    def head_rows(self, ids: Tensor) -> nn.Linear:
        """A linear module with some rows of the LM head: (V',), int64."""
        head: Any = self.model.get_submodule(self.family.head)
        weight = head.weight[ids] if self._packing is None else self._packing.head_rows(ids)
        rows = nn.Linear(weight.shape[1], weight.shape[0], bias=head.bias is not None, device="meta")
        rows.weight = nn.Parameter(weight, requires_grad=False)
        if head.bias is not None:
            rows.bias = nn.Parameter(head.bias[ids], requires_grad=False)
        return rows

    def adopt(self, layers: Sequence[nn.Module]) -> tuple[Stage, ...]:
        """Take further decoder layers of the model's kind, numbered after its own; returns a stage for each.

        A layer that was taken before keeps its number.
        """
        self.pack(layers)
        for layer in layers:
            if not any(layer is known for known in self.layers):
                attention: Any = layer.get_submodule(self.family.attention.module)
                attention.layer_idx = len(self.layers)
                self.layers.append(layer)
                self._kinds.append(self._kinds[-1])
                self._windows.append(self._windows[-1])
        numbers = {id(layer): index for index, layer in enumerate(self.layers)}
        return tuple(Stage((numbers[id(layer)],)) for layer in layers)

    def pack(self, modules: Sequence[nn.Module]) -> None:
        """Pack the linear modules of a head, where the model's are packed; unpacked with them."""
        if self._packing is not None:
            self._packing.add(modules)

    def refresh(self) -> None:
        """Take in what has been done to the model since, such as an adapter that was put on."""
        own = self.family.decoder_layers(self.model)
        self.layers[: len(own)] = own
        self._embedding = self.model.get_submodule(self.family.embedding)
        if self._packing is not None:
            self._packing.refresh()

    def context(
        self, starts: Sequence[int], tokens: int, capacity: int, first_row: int = 0, stride: int | None = None
    ) -> ForwardContext:
        """Where `tokens` new tokens of each sequence stand.

        Args:
            starts: position of each sequence's first new token.
            capacity: of the caches that will be written.
            first_row: the first sequence's row in them.
            stride: make the span a multiple of this (or the capacity), for steps of the same shape; None: as it is.
        """
        batch, span = len(starts), max(starts) + tokens
        if stride is not None:
            span = min(capacity, -(-span // stride) * stride)
        first = torch.tensor(starts, device=self.device)[:, None]  # (B, 1)
        positions = first + torch.arange(tokens, device=self.device)  # (B, T)
        rows = torch.arange(first_row, first_row + batch, device=self.device)[:, None]
        dtype = self._embedding.weight.dtype
        even = stride is None and min(starts) == max(starts) and (tokens == 1 or starts[0] == 0)
        masks = {
            window: None if even and (window is None or span <= window) else _mask(positions, span, window, dtype)
            for window in set(self._windows)
        }
        return ForwardContext(
            rows=slice(first_row, first_row + batch),
            positions=positions,
            slots=(rows * capacity + positions).flatten(),
            span=span,
            masks=masks,
            rotary=self._rotary_embeddings(positions),
        )

    def context_at(self, positions: Tensor, mask_of: Callable[[int | None], Tensor]) -> ForwardContext:
        """A context in no preallocated cache, of any positions and masks, for caches that need neither row nor slot.

        Args:
            positions: (B, T), int64.
            mask_of: makes the mask of a sliding window; see `ForwardContext`.
        """
        return ForwardContext(
            rows=slice(0, len(positions)),
            positions=positions,
            slots=positions.new_empty(0),
            span=0,
            masks={window: mask_of(window) for window in set(self._windows)},
            rotary=self._rotary_embeddings(positions),
        )

    def _rotary_embeddings(self, positions: Tensor) -> dict[str, Any]:
        like = self._embedding.weight.new_empty(0)  # it gives dtype and device
        if self.family.rotary_by_attention_type:
            return {kind: self._rotary(like, positions, kind) for kind in set(self._kinds)}
        return dict.fromkeys(set(self._kinds), self._rotary(like, positions))

    def run(
        self, stages: Sequence[Stage], form: Form, hidden: Tensor, context: ForwardContext, cache_of: CacheOf
    ) -> Tensor:
        """Run some stages, one after the other.

        Args:
            hidden: what goes into the first of them, (B, T, D).
            context: where its tokens stand.
            cache_of: the cache of each layer. Writes the entries of the layers that run.

        Returns:
            What comes out of the last, (B, T, D).
        """
        window = _Window(context, cache_of)
        with installed(self.model.config):
            for stage in stages:
                hidden = self._run(stage, form, hidden, context, window)
        return hidden

    def _run(self, stage: Stage, form: Form, hidden: Tensor, context: ForwardContext, window: _Window) -> Tensor:
        given = [self._inputs(index, context, window) for index in stage.layers]
        layers: list[nn.Module] = [self.layers[index] for index in stage.layers]
        if stage.is_group:
            return run_group(layers, given, self.family, form, hidden)
        return call_layer(layers[0], hidden, given[0])

    def _inputs(self, index: int, context: ForwardContext, window: _Window) -> dict[str, Any]:
        return {
            "attention_mask": context.masks[self._windows[index]],
            "position_ids": context.positions,
            "past_key_values": window,
            "position_embeddings": context.rotary[self._kinds[index]],
        }


def _mask(positions: Tensor, span: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """0 where a token may look and -inf where not: (B, 1, T, span)."""
    entries = torch.arange(span, device=positions.device)
    seen = entries <= positions[..., None]  # (B, T, span)
    if window is not None:
        seen &= entries > positions[..., None] - window
    mask = torch.zeros(seen.shape, dtype=dtype, device=positions.device)
    return mask.masked_fill_(~seen, -torch.inf)[:, None]
