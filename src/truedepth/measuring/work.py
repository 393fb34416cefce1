"""What one decode step must read and compute, counted from the model's own tensors.

Decoding reads every weight that it uses once a step, whatever the batch, so bytes over memory bandwidth is
the time that no implementation can beat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import DynamicCache

from truedepth.errors import UsageError
from truedepth.families import family_of
from truedepth.models.rewire import causal_lm
from truedepth.plan import DepthPlan, Stage


@dataclass(frozen=True, slots=True)
class LayerWork:
    """One decoder layer's share of a decode step.

    Attributes:
        weight_bytes: its weights, once; of a mixture's experts those that a step is expected to use.
        cache_bytes: its keys and values at the context length, for all sequences.
        flops: floating-point operations, a multiplication and its addition as two, for all sequences.
    """

    weight_bytes: int
    cache_bytes: int
    flops: int

    @property
    def read_bytes(self) -> int:
        """Weights and cache."""
        return self.weight_bytes + self.cache_bytes


@dataclass(frozen=True, slots=True)
class DecodeWork:
    """What one decode step reads and computes.

    Attributes:
        layers: by layer number of the source model.
        outside_bytes: final norm, LM head (counted once where it is tied to the embedding) and one
            embedding row a sequence.
        outside_flops: of the LM head.
        hidden_bytes: the hidden states of all sequences at one layer's output, (B, 1, D): what an
            all-reduce sends.
        batch: sequences decoded at once.
        context: tokens of each sequence in the KV cache.
    """

    layers: tuple[LayerWork, ...]
    outside_bytes: int
    outside_flops: int
    hidden_bytes: int
    batch: int
    context: int

    @classmethod
    def of(cls, model: nn.Module, *, context: int, batch: int = 1, bytes_per_value: float | None = None) -> DecodeWork:
        """Count a model's work.

        The KV cache of a sliding-window layer counts up to its window. In a mixture of experts, a step of B
        tokens is expected to use E * (1 - (1 - k/E)^B) of the E experts of a layer when each token picks k
        of them evenly: the share k/E at batch 1.

        Args:
            model: a `transformers` causal language model of a supported family, bare or wrapped by PEFT.
            context: tokens of each sequence in the KV cache, at least 1.
            batch: sequences decoded at once.
            bytes_per_value: width of a weight, cache entry or activation; None: as the tensors have it.

        Raises:
            UsageError: context or batch below 1.
            UnsupportedModelError: the family is unknown.
        """
        if context < 1 or batch < 1:
            raise UsageError(f"context {context} and batch {batch} must both be at least 1")
        return _Counter(context, batch, bytes_per_value).work(model)

    def stage_layers(self, stage: Stage) -> tuple[LayerWork, ...]:
        """The layers whose work a stage does; a merged stage does that of one layer."""
        used = stage.layers[:1] if stage.merged else stage.layers
        return tuple(self.layers[index] for index in used)

    def step_bytes(self, plan: DepthPlan) -> int:
        """Bytes that one decode step under `plan` reads."""
        layers = (layer for stage in plan.stages for layer in self.stage_layers(stage))
        return self.outside_bytes + sum(layer.read_bytes for layer in layers)

    def bytes_per_token(self, plan: DepthPlan) -> int:
        """Bytes read for each new token: those of a step shared by the batch."""
        return round(self.step_bytes(plan) / self.batch)


@dataclass(frozen=True)
class _Counter:
    """Counting, with the settings that it depends on."""

    context: int
    batch: int
    bytes_per_value: float | None

    def work(self, wrapped: nn.Module) -> DecodeWork:
        model = causal_lm(wrapped)
        family = family_of(model.config)
        head = model.get_submodule(family.head)
        norm = model.get_submodule(family.final_norm)
        row = model.get_submodule(family.embedding).weight[0]  # (D,)
        row_bytes = self.batch * self._bytes(row)
        outside = [*head.parameters(), *head.buffers(), *norm.parameters(), *norm.buffers()]
        windows = [getattr(entry, "sliding_window", None) for entry in DynamicCache(config=model.config).layers]
        layers = zip(family.decoder_layers(model), windows, strict=True)
        return DecodeWork(
            layers=tuple(self._layer(layer, window, model.config, row) for layer, window in layers),
            outside_bytes=round(sum(map(self._bytes, outside)) + row_bytes),
            outside_flops=2 * self.batch * sum(tensor.numel() for tensor in head.parameters()),
            hidden_bytes=round(row_bytes),
            batch=self.batch,
            context=self.context,
        )

    def _layer(self, layer: nn.Module, window: int | None, config: Any, row: Tensor) -> LayerWork:
        weight_bytes = flops = 0.0
        for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
            read = used = 1.0
            if "experts" in name.split("."):
                used = config.num_experts_per_tok / config.num_experts
                read = 1 - (1 - used) ** self.batch
            weight_bytes += read * self._bytes(tensor)
            if tensor.dim() > 1:
                flops += 2 * self.batch * used * tensor.numel()
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        seen = self.batch * (self.context if window is None else min(self.context, window))
        cached_values = 2 * seen * config.num_key_value_heads * head_dim
        return LayerWork(
            weight_bytes=round(weight_bytes),
            # Keys and values have the dtype of the hidden states, whatever the weights are packed in.
            cache_bytes=round(cached_values * self._width(row)),
            # A score and a weighted sum for each token that each query head looks at.
            flops=round(flops + 4 * seen * heads * head_dim),
        )

    def _bytes(self, tensor: Tensor) -> float:
        return tensor.numel() * self._width(tensor)

    def _width(self, tensor: Tensor) -> float:
        return tensor.element_size() if self.bytes_per_value is None else self.bytes_per_value
