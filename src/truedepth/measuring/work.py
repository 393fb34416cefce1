"""What one forward pass must read and compute, counted from the model's own tensors, which need hold no numbers.

A pass reads every weight that it uses once, however many tokens it is for, so bytes over memory bandwidth is the time
that no implementation of a decode step can beat.
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
    """One decoder layer's share of a pass.

    Attributes:
        weight_bytes: its weights, once; of a mixture's experts those that a pass is expected to use.
        cache_bytes: its keys and values of all tokens that the pass looks at, for all sequences.
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
class ForwardWork:
    """What one pass over T new tokens a sequence reads and computes.

    Attributes:
        layers: by layer number of the source model.
        outside_bytes: final norm, LM head (counted once where it is tied to the embedding) and one embedding row a
            token.
        outside_flops: of the LM head, for the last token of each sequence.
        hidden_bytes: the hidden states of all sequences at one layer's output, (B, T, D): what an all-reduce sends.
        logits_bytes: the logits of the last token of all sequences, (B, 1, V): what ranks with a part of the LM head
            gather.
        batch: sequences at once.
    """

    layers: tuple[LayerWork, ...]
    outside_bytes: int
    outside_flops: int
    hidden_bytes: int
    logits_bytes: int
    batch: int

    def stage_layers(self, stage: Stage) -> tuple[LayerWork, ...]:
        """The layers whose work a stage does; a merged stage does that of one layer."""
        return tuple(self.layers[index] for index in stage.layers_run)

    def step_bytes(self, plan: DepthPlan) -> int:
        """Bytes that one pass under `plan` reads."""
        layers = (layer for stage in plan.stages for layer in self.stage_layers(stage))
        return self.outside_bytes + sum(layer.read_bytes for layer in layers)


@dataclass(frozen=True, slots=True)
class DecodeWork(ForwardWork):
    """A decode step: one new token a sequence, T = 1.

    Attributes:
        context: tokens of each sequence in the KV cache.
    """

    context: int

    @classmethod
    def of(cls, model: nn.Module, *, context: int, batch: int = 1, bytes_per_value: float | None = None) -> DecodeWork:
        """Count a model's work.

        The KV cache of a sliding-window layer counts up to its window. In a mixture of experts, a pass of N tokens is
        expected to use E * (1 - (1 - k/E)^N) of the E experts of a layer when each token picks k of them evenly: the
        share k/E for a single token.

        Args:
            model: a `transformers` causal language model of a supported family, bare or wrapped by PEFT; on the meta
                device too.
            context: tokens of each sequence in the KV cache, at least 1.
            batch: sequences decoded at once.
            bytes_per_value: width of a weight, cache entry or activation; None: as the tensors have it.

        Raises:
            UsageError: context or batch below 1.
            UnsupportedModelError: the family is unknown.
        """
        if context < 1 or batch < 1:
            raise UsageError(f"context {context} and batch {batch} must both be at least 1")
        return cls(**_Counter(1, context, batch, bytes_per_value).fields(model), context=context)

    def bytes_per_token(self, plan: DepthPlan) -> int:
        """Bytes read for each new token: those of a step shared by the batch."""
        return round(self.step_bytes(plan) / self.batch)


@dataclass(frozen=True, slots=True)
class PrefillWork(ForwardWork):
    """A prompt at once: T = `prompt_tokens` tokens a sequence, logits of the last one.

    A token looks at those before it and at itself; keys and values are read once.

    Attributes:
        prompt_tokens: tokens of each sequence.
    """

    prompt_tokens: int

    @classmethod
    def of(
        cls, model: nn.Module, *, prompt_tokens: int, batch: int = 1, bytes_per_value: float | None = None
    ) -> PrefillWork:
        """Count a model's work; see `DecodeWork.of`.

        Raises:
            UsageError: prompt tokens or batch below 1.
            UnsupportedModelError: the family is unknown.
        """
        if prompt_tokens < 1 or batch < 1:
            raise UsageError(f"prompt tokens {prompt_tokens} and batch {batch} must both be at least 1")
        counter = _Counter(prompt_tokens, prompt_tokens, batch, bytes_per_value)
        return cls(**counter.fields(model), prompt_tokens=prompt_tokens)


@dataclass(frozen=True)
class _Counter:
    """Counting, with the settings that it depends on.

    Attributes:
        tokens: new tokens a sequence.
        context: tokens that the last of them looks at.
    """

    tokens: int
    context: int
    batch: int
    bytes_per_value: float | None

    def fields(self, wrapped: nn.Module) -> dict[str, Any]:
        """The fields of `ForwardWork`."""
        model = causal_lm(wrapped)
        family = family_of(model.config)
        head = model.get_submodule(family.head)
        norm = model.get_submodule(family.final_norm)
        row = model.get_submodule(family.embedding).weight[0]  # (D,)
        rows_bytes = self.batch * self.tokens * self._bytes(row)
        outside = [*head.parameters(), *head.buffers(), *norm.parameters(), *norm.buffers()]
        windows = [getattr(entry, "sliding_window", None) for entry in DynamicCache(config=model.config).layers]
        widths: Any = model.config.per_layer_config  # of each layer; a checkpoint's layers may differ
        layers = zip(family.decoder_layers(model), windows, widths, strict=True)
        return {
            "layers": tuple(self._layer(layer, window, width, row) for layer, window, width in layers),
            "outside_bytes": round(sum(map(self._bytes, outside)) + rows_bytes),
            "outside_flops": 2 * self.batch * sum(tensor.numel() for tensor in head.parameters()),
            "hidden_bytes": round(rows_bytes),
            "logits_bytes": round(self.batch * head.weight.shape[0] * self._width(row)),
            "batch": self.batch,
        }

    def _layer(self, layer: nn.Module, window: int | None, config: Any, row: Tensor) -> LayerWork:
        tokens = self.batch * self.tokens
        weight_bytes = flops = 0.0
        for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
            read = used = 1.0
            if "experts" in name.split("."):
                used = config.num_experts_per_tok / config.num_experts
                read = 1 - (1 - used) ** tokens
            weight_bytes += read * self._bytes(tensor)
            if tensor.dim() > 1:
                flops += 2 * tokens * used * tensor.numel()
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        reach = self.context if window is None else min(self.context, window)
        cached = self.batch * max(reach, self.tokens)
        return LayerWork(
            weight_bytes=round(weight_bytes),
            # Keys and values have the dtype of the hidden states, whatever the weights are packed in.
            cache_bytes=round(2 * cached * config.num_key_value_heads * head_dim * self._width(row)),
            # A score and a weighted sum for each token that each query head looks at.
            flops=round(flops + 4 * self.batch * self._looks(reach) * heads * head_dim),
        )

    def _looks(self, reach: int) -> int:
        """Pairs of a new token and a token that it looks at, at most `reach` for each."""
        first = self.context - self.tokens + 1
        growing = max(0, reach - first)
        return growing * (first + reach - 1) // 2 + (self.tokens - growing) * reach

    def _bytes(self, tensor: Tensor) -> float:
        return tensor.numel() * self._width(tensor)

    def _width(self, tensor: Tensor) -> float:
        return tensor.element_size() if self.bytes_per_value is None else self.bytes_per_value
