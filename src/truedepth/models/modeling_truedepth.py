"""Models with wide layers: checkpoints whose decoder layers differ in the number of heads and the width of the FFN.

Each layer of such a checkpoint is one stage of a depth plan: a layer of the source model, or several side by side as
one. The classes are those of transformers with layers of their own widths, which `per_layer_config` in `config.json`
says. This file comes with each checkpoint too, for `trust_remote_code`: it needs transformers 5.20 or later only, and
nothing private of it. It relies on families making their layers as `Layer(config, index)`, `num_hidden_layers` of them
in `layers`, and on modules that read their widths from `config`. Where truedepth is installed, `truedepth.load` loads
the checkpoint, and `from truedepth.models import modeling_truedepth` makes transformers' Auto classes know it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models import llama, mistral, phi3, qwen2, qwen3, smollm3


class _WideConfig:
    """Mixed in front of a family's configuration; its global widths are those of the source's layers."""

    # Engines read global values by `getattr` with a default, which would raise otherwise.
    allow_global_per_layer_attribute_access = True

    def validate_architecture(self) -> None:
        """Heads of all sizes are fine: `head_dim` is explicit."""


class _LayerConfig:
    """What a layer's modules read when they run: the layer's widths, and all else as the model's configuration has it
    by then, such as the attention implementation that somebody has chosen since."""

    def __init__(self, config: Any, index: int) -> None:
        own = config.per_layer_config[index]
        self.num_attention_heads = own.num_attention_heads
        self.num_key_value_heads = own.num_key_value_heads
        self.intermediate_size = own.intermediate_size
        self._whole = config

    def __getattr__(self, name: str) -> Any:
        if name == "_whole" or name.startswith("__"):  # not there yet while a copy is being made
            raise AttributeError(name)
        return getattr(self._whole, name)


class _WideModel(nn.Module):
    """Mixed in front of a family's model: builds each layer with its own widths."""

    layer_class: Any
    layers: Any
    post_init: Any

    def __init__(self, config: Any) -> None:
        with _without_layers(config):
            super().__init__(config)
        self.layers = nn.ModuleList(self._layer(config, index) for index in range(config.num_hidden_layers))
        self.post_init()

    def _layer(self, config: Any, index: int) -> Any:
        layer = self.layer_class(config.per_layer_config[index], index)
        for module in layer.modules():
            if "config" in vars(module):
                module.config = _LayerConfig(config, index)
        return layer


class _WideForCausalLM(nn.Module):
    """Mixed in front of a family's causal language model."""

    model_class: Any
    model: Any
    post_init: Any

    def __init__(self, config: Any) -> None:
        with _without_layers(config):
            super().__init__(config)
        self.model = self.model_class(config)
        self.post_init()


@contextmanager
def _without_layers(config: Any) -> Iterator[None]:
    """Within it the configuration has no layers, so that a family's own constructor makes only what is around them."""
    layers, widths = config.num_hidden_layers, config.to_dict().get("per_layer_config")
    config.per_layer_config, config.num_hidden_layers = None, 0
    try:
        yield
    finally:
        config.num_hidden_layers, config.per_layer_config = layers, widths


@strict
class TruedepthLlamaConfig(_WideConfig, llama.LlamaConfig):
    model_type = "truedepth_llama"


class TruedepthLlamaModel(_WideModel, llama.LlamaModel):
    config_class = TruedepthLlamaConfig
    layer_class = llama.modeling_llama.LlamaDecoderLayer


class TruedepthLlamaForCausalLM(_WideForCausalLM, llama.LlamaForCausalLM):
    config_class = TruedepthLlamaConfig
    model_class = TruedepthLlamaModel


@strict
class TruedepthMistralConfig(_WideConfig, mistral.MistralConfig):
    model_type = "truedepth_mistral"


class TruedepthMistralModel(_WideModel, mistral.MistralModel):
    config_class = TruedepthMistralConfig
    layer_class = mistral.modeling_mistral.MistralDecoderLayer


class TruedepthMistralForCausalLM(_WideForCausalLM, mistral.MistralForCausalLM):
    config_class = TruedepthMistralConfig
    model_class = TruedepthMistralModel


@strict
class TruedepthPhi3Config(_WideConfig, phi3.Phi3Config):
    model_type = "truedepth_phi3"


class TruedepthPhi3Model(_WideModel, phi3.Phi3Model):
    config_class = TruedepthPhi3Config
    layer_class = phi3.modeling_phi3.Phi3DecoderLayer


class TruedepthPhi3ForCausalLM(_WideForCausalLM, phi3.Phi3ForCausalLM):
    config_class = TruedepthPhi3Config
    model_class = TruedepthPhi3Model


@strict
class TruedepthQwen2Config(_WideConfig, qwen2.Qwen2Config):
    model_type = "truedepth_qwen2"


class TruedepthQwen2Model(_WideModel, qwen2.Qwen2Model):
    config_class = TruedepthQwen2Config
    layer_class = qwen2.modeling_qwen2.Qwen2DecoderLayer


class TruedepthQwen2ForCausalLM(_WideForCausalLM, qwen2.Qwen2ForCausalLM):
    config_class = TruedepthQwen2Config
    model_class = TruedepthQwen2Model


@strict
class TruedepthQwen3Config(_WideConfig, qwen3.Qwen3Config):
    model_type = "truedepth_qwen3"
    # The gains of q and k are sharded with their heads.
    base_model_tp_plan = {  # noqa: RUF012
        **qwen3.Qwen3Config.base_model_tp_plan,
        "layers.*.self_attn.q_norm": "local_params",
        "layers.*.self_attn.q_norm.weight": "colwise",
        "layers.*.self_attn.k_norm": "local_params",
        "layers.*.self_attn.k_norm.weight": "colwise",
    }


class TruedepthQwen3Model(_WideModel, qwen3.Qwen3Model):
    config_class = TruedepthQwen3Config
    layer_class = qwen3.modeling_qwen3.Qwen3DecoderLayer

    def _layer(self, config: Any, index: int) -> Any:
        """With a gain for each head of q and k, (heads, head_dim): a wide layer's heads come from several layers."""
        layer = super()._layer(config, index)
        attention, width = layer.self_attn, config.per_layer_config[index]
        attention.q_norm.weight = nn.Parameter(torch.ones(width.num_attention_heads, width.head_dim))
        attention.k_norm.weight = nn.Parameter(torch.ones(width.num_key_value_heads, width.head_dim))
        return layer


class TruedepthQwen3ForCausalLM(_WideForCausalLM, qwen3.Qwen3ForCausalLM):
    config_class = TruedepthQwen3Config
    model_class = TruedepthQwen3Model


@strict
class TruedepthSmolLM3Config(_WideConfig, smollm3.SmolLM3Config):
    model_type = "truedepth_smollm3"


class TruedepthSmolLM3Model(_WideModel, smollm3.SmolLM3Model):
    config_class = TruedepthSmolLM3Config
    layer_class = smollm3.modeling_smollm3.SmolLM3DecoderLayer


class TruedepthSmolLM3ForCausalLM(_WideForCausalLM, smollm3.SmolLM3ForCausalLM):
    config_class = TruedepthSmolLM3Config
    model_class = TruedepthSmolLM3Model


WIDE_CLASSES = {
    causal.config_class.model_type: (causal.config_class, causal.model_class, causal)
    for causal in (
        TruedepthLlamaForCausalLM,
        TruedepthMistralForCausalLM,
        TruedepthPhi3ForCausalLM,
        TruedepthQwen2ForCausalLM,
        TruedepthQwen3ForCausalLM,
        TruedepthSmolLM3ForCausalLM,
    )
}
"""By model type: configuration, model, and causal language model."""

for _model_type, (_config, _model, _causal) in WIDE_CLASSES.items():
    AutoConfig.register(_model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
    AutoModelForCausalLM.register(_config, _causal, exist_ok=True)
