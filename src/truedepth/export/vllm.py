"""What vLLM runs a checkpoint with wide layers by: its own Llama and Qwen3, with layers of different widths.

Found through the entry point `vllm.general_plugins`, so that an installed truedepth is enough for `vllm serve`. Tensor
and pipeline parallelism, quantisation and the rest are vLLM's own. Needs vLLM and transformers, and nothing else.
"""

from __future__ import annotations

WIDE = "truedepth.export.vllm_models"
ARCHITECTURES = {
    "TruedepthLlamaForCausalLM": f"{WIDE}:WideLlamaForCausalLM",
    "TruedepthMistralForCausalLM": f"{WIDE}:WideLlamaForCausalLM",
    "TruedepthPhi3ForCausalLM": f"{WIDE}:WidePhi3ForCausalLM",
    "TruedepthQwen2ForCausalLM": f"{WIDE}:WideLlamaForCausalLM",
    "TruedepthQwen3ForCausalLM": f"{WIDE}:WideQwen3ForCausalLM",
    "TruedepthSmolLM3ForCausalLM": f"{WIDE}:WideLlamaForCausalLM",
}
"""What loads each architecture; vLLM imports it in a process of its own when it is asked for."""


def register() -> None:
    """Make vLLM, and transformers in the same process, know the architectures. May be called several times."""
    from vllm import ModelRegistry

    import truedepth.models.modeling_truedepth  # noqa: F401  (registers the configurations)

    for architecture, location in ARCHITECTURES.items():
        ModelRegistry.register_model(architecture, location)
