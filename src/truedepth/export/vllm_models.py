"""vLLM's own Llama and Qwen3 with layers of different widths. Imported by vLLM (see `truedepth.export.vllm`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaForCausalLM
from vllm.model_executor.models.phi3 import Phi3ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3DecoderLayer, Qwen3Model
from vllm.model_executor.models.utils import extract_layer_index
from vllm.model_executor.utils import set_weight_attrs


class NoRotary(nn.Module):
    """In the place of the rotary embedding, for SmolLM3's layers without one."""

    def forward(self, positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return query, key


class HeadNorm(nn.Module):
    """An RMS norm of each head with a gain of its own, (..., heads, head_dim); a rank has the gains of its heads."""

    def __init__(self, heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.norm = RMSNorm(head_dim, eps=eps, has_weight=False)
        ranks = get_tensor_model_parallel_world_size()
        # Where there are fewer heads than ranks, several ranks have the same one.
        self.own, self.shared = max(1, heads // ranks), max(1, ranks // heads)
        self.weight = nn.Parameter(torch.ones(self.own, head_dim))
        set_weight_attrs(self.weight, {"weight_loader": self.load})

    def load(self, parameter: nn.Parameter, loaded: Tensor) -> None:
        """Take this rank's rows of (heads, head_dim)."""
        first = get_tensor_model_parallel_rank() // self.shared * self.own
        parameter.data.copy_(loaded[first : first + self.own])

    def forward(self, states: Tensor) -> Tensor:
        normed: Tensor = self.norm(states.contiguous())
        return normed * self.weight


class WideLlamaLayer(LlamaDecoderLayer):
    """A layer with its own widths. vLLM's Llama computes what Mistral, Qwen2 and SmolLM3 do, too."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        whole = vllm_config.model_config.hf_config
        index = extract_layer_index(prefix)
        config = whole.per_layer_config[index]
        if whole.model_type == "truedepth_qwen2":
            config.qkv_bias = True
        super().__init__(vllm_config, prefix, config=config)
        if not (getattr(whole, "no_rope_layers", None) or [True] * (index + 1))[index]:
            self.self_attn.rotary_emb = NoRotary()


class WideLlamaForCausalLM(LlamaForCausalLM):
    """Llama, Mistral, Qwen2 and SmolLM3."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=WideLlamaLayer)


class WidePhi3ForCausalLM(Phi3ForCausalLM):
    """Phi-3, whose checkpoints have q, k and v, and gate and up, in one tensor each."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=WideLlamaLayer)


class WideQwen3Layer(Qwen3DecoderLayer):
    """A layer with its own widths, and a gain for each head of q and k."""

    def __init__(self, config: Any, cache_config: Any = None, quant_config: Any = None, prefix: str = "") -> None:
        own = config.per_layer_config[extract_layer_index(prefix)]
        super().__init__(own, cache_config, quant_config, prefix)
        eps, head_dim = own.rms_norm_eps, own.head_dim
        self.self_attn.q_norm = HeadNorm(own.num_attention_heads, head_dim, eps)
        self.self_attn.k_norm = HeadNorm(own.num_key_value_heads, head_dim, eps)


class WideQwen3Model(Qwen3Model):
    decoder_layer_type = WideQwen3Layer


class WideQwen3ForCausalLM(LlamaForCausalLM):
    """Qwen3's layers within vLLM's Llama: what is around the layers is the same."""

    def _init_model(self, vllm_config: VllmConfig, prefix: str = "", layer_type: Any = None) -> nn.Module:
        return WideQwen3Model(vllm_config=vllm_config, prefix=prefix)
