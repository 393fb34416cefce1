"""A plan on a checkpoint as a checkpoint of its own: each group in form lp becomes one wide layer.

With A = norm + attention and F = norm + FFN, a group computes u = x + sum A_i(x), y = u + sum F_i(u) (form lp,
arXiv 2502.02790). Its layers read the same normalised input and differ only in the norms' gains, so

- the gains go into the columns of what reads the norms (W diag(g)), and the wide layer's own gains are 1;
- q, k, v, gate and up are stacked by rows: more heads, and a wider FFN;
- o and down are put side by side by columns, which sums over the layers;
- biases of q, k, v, gate and up are stacked; those of o and down are added.

Query heads keep the order of their layers, and so do key-value heads. Where all layers have as many query heads to a
key-value head, head i then still finds its own under the usual rule (i // that number). A norm on each head of q and k
has one gain for all heads of a layer; the wide layer's has a row for each head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from truedepth.errors import PlanError, UnsupportedModelError
from truedepth.families import Family
from truedepth.plan import DepthPlan, Stage

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Read = Callable[[str], Tensor]
"""Gives a tensor of the source by its full name, such as `model.layers.3.mlp.up_proj.weight`."""

INPUT_NORM, FFN_NORM = "input_layernorm", "post_attention_layernorm"
STACKED = {
    "self_attn.q_proj": INPUT_NORM,
    "self_attn.k_proj": INPUT_NORM,
    "self_attn.v_proj": INPUT_NORM,
    "self_attn.qkv_proj": INPUT_NORM,
    "mlp.gate_proj": FFN_NORM,
    "mlp.up_proj": FFN_NORM,
    "mlp.gate_up_proj": FFN_NORM,
}
"""Projections that are stacked by rows, with the norm that they read."""
SUMMED = ("self_attn.o_proj", "mlp.down_proj")
"""Projections that are put side by side, so that their outputs add up."""
HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
"""Norms on each head of q and of k."""


@dataclass(frozen=True)
class WideLayer:
    """What one stage of a plan is as a decoder layer.

    Attributes:
        layers: the source layers.
        heads, kv_heads: query heads and key-value heads.
        intermediate: width of the FFN.
        tensors: by their names inside of a decoder layer, such as `self_attn.q_proj.weight`, in the source's dtypes.
            Those of a single layer are the source's, unchanged. A norm on each head of q and k is (head_dim,) in a
            single layer, and (heads, head_dim) or (kv_heads, head_dim) in a group.
    """

    layers: tuple[int, ...]
    heads: int
    kv_heads: int
    intermediate: int
    tensors: dict[str, Tensor]


def require_fusable(config: PreTrainedConfig, family: Family, plan: DepthPlan) -> None:
    """Refuse a plan that a checkpoint of this model cannot express.

    Raises:
        PlanError: it is for another number of layers, prefills every layer, or has groups in form par.
        UnsupportedModelError: the family cannot do what its groups or merged layers need, or layers that run side by
            side attend in different ways.
    """
    if plan.num_layers != config.num_hidden_layers:
        raise PlanError(
            f"the plan '{plan}' is for {plan.num_layers} layers, but the model has {config.num_hidden_layers}; "
            "make a plan for this model"
        )
    if plan.prefill == "full" and not plan.is_full:
        raise PlanError(
            "the plan runs every layer for the prompt, but a checkpoint has one set of layers for all tokens; "
            "use --prefill plan, and judge its quality with that"
        )
    if plan.groups and plan.form == "par":
        raise PlanError(
            f"stage '{plan.groups[0]}' is in form par, in which each layer's FFN reads its own attention's output; "
            "one wide layer cannot express that. Use --form lp, and judge its quality with that; truedepth itself "
            "runs par on several ranks"
        )
    for stage in plan.stages:
        if stage.merged:
            family.require("merge")
        elif stage.is_group:
            family.require("fuse")
            _require_alike(config, family, stage)


def stage_facts(config: PreTrainedConfig, family: Family, plan: DepthPlan) -> dict[str, Any]:
    """What a checkpoint of the plan's stages has in its configuration in place of the source's, widths apart:
    `num_hidden_layers`, and the lists with one value a layer. A merged layer is in its first layer's place."""
    first = [stage.layers[0] for stage in plan.stages]
    facts: dict[str, Any] = {"num_hidden_layers": len(first)}
    for name in family.by_layer:
        values = getattr(config, name, None)
        if values is not None:
            facts[name] = [values[layer] for layer in first]
    return facts


def fused_layers(read: Read, config: PreTrainedConfig, family: Family, plan: DepthPlan) -> Iterator[WideLayer]:
    """The plan's stages as decoder layers, one after the other, so that memory holds one stage's tensors.

    Gains are multiplied into weights, and means of merged layers taken, in float32 at least; the result is rounded
    to the source's dtype.

    Args:
        config: the source's; its layers may differ in width (`per_layer_config`).

    Raises:
        PlanError, UnsupportedModelError: see `require_fusable`; also a layer with tensors that are not known.
    """
    require_fusable(config, family, plan)
    names = layer_tensor_names(config, family)
    for stage in plan.stages:
        widths = [config.per_layer_config[layer] for layer in stage.layers]
        summed = widths if stage.is_group else widths[:1]
        yield WideLayer(
            layers=stage.layers,
            heads=sum(width.num_attention_heads for width in summed),
            kv_heads=sum(width.num_key_value_heads for width in summed),
            intermediate=sum(width.intermediate_size for width in summed),
            tensors=_stage_tensors(read, family, stage, names[stage.layers[0]], widths),
        )


def layer_tensor_names(config: PreTrainedConfig, family: Family) -> list[list[str]]:
    """The names of each layer's parameters, as inside of a decoder layer."""
    from truedepth.models.loading.load import blank_model

    return [[name for name, _ in layer.named_parameters()] for layer in family.decoder_layers(blank_model(config))]


def _stage_tensors(
    read: Read, family: Family, stage: Stage, names: Sequence[str], widths: Sequence[Any]
) -> dict[str, Tensor]:
    def parts(name: str) -> list[Tensor]:
        return [read(f"{family.layers}.{layer}.{name}") for layer in stage.layers]

    if not stage.is_group:
        return {name: mean_of(parts(name)) if stage.merged else parts(name)[0] for name in names}
    gains = {norm: parts(f"{norm}.weight") for norm in (INPUT_NORM, FFN_NORM)}
    return {name: _fuse(name, parts(name), gains, widths) for name in names}


def _fuse(name: str, parts: list[Tensor], gains: dict[str, list[Tensor]], widths: Sequence[Any]) -> Tensor:
    """One tensor of a wide layer from the same tensor of its layers."""
    module, _, kind = name.rpartition(".")
    if module in gains:
        return torch.ones_like(parts[0])
    if module in HEAD_NORMS:
        counts = [
            width.num_attention_heads if module == HEAD_NORMS[0] else width.num_key_value_heads for width in widths
        ]
        # A layer that is wide itself has a row for each head already.
        return torch.cat([part.expand(heads, -1) for part, heads in zip(parts, counts, strict=True)])  # (H, head_dim)
    if module in SUMMED:
        return torch.cat(parts, dim=1) if kind == "weight" else _sum(parts)  # (D, sum of inputs) or (D,)
    if module not in STACKED:
        raise UnsupportedModelError(f"a layer has the tensor '{name}', which truedepth does not know how to fuse")
    if kind == "weight":
        parts = [_fold(part, gain) for part, gain in zip(parts, gains[STACKED[module]], strict=True)]
    sections = [_sections(module, width) for width in widths]
    split = [part.split(sizes) if sizes else (part,) for part, sizes in zip(parts, sections, strict=True)]
    # All layers' q, then all layers' k, and so on: one section in a projection of its own, several in a packed one.
    return torch.cat([piece for pieces in zip(*split, strict=True) for piece in pieces])  # (sum of outputs, D)


def _sections(module: str, width: Any) -> list[int]:
    """Rows of q, k and v, or of gate and up, in a projection that packs them. Empty for one that does not."""
    if module == "mlp.gate_up_proj":
        return [width.intermediate_size] * 2
    if module == "self_attn.qkv_proj":
        head_dim = getattr(width, "head_dim", None) or width.hidden_size // width.num_attention_heads
        kv_rows = width.num_key_value_heads * head_dim
        return [width.num_attention_heads * head_dim, kv_rows, kv_rows]
    return []


def _fold(weight: Tensor, gain: Tensor) -> Tensor:
    """W diag(g): (out, D) and (D,) to (out, D)."""
    precise = torch.promote_types(weight.dtype, torch.float32)
    return (weight.to(precise) * gain.to(precise)).to(weight.dtype)


def _sum(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum(0, dtype=torch.promote_types(parts[0].dtype, torch.float32)).to(parts[0].dtype)


def mean_of(parts: list[Tensor]) -> Tensor:
    """The mean of the same tensor of several layers, as `truedepth.models.rewire` merges them."""
    return torch.stack(parts).mean(0, dtype=torch.promote_types(parts[0].dtype, torch.float32)).to(parts[0].dtype)


def _require_alike(config: PreTrainedConfig, family: Family, stage: Stage) -> None:
    """Layers of one wide layer share a mask, a rotary embedding, and the number of query heads to a key-value head."""
    for name in family.by_layer:
        values = getattr(config, name, None)
        if values is not None and len({values[layer] for layer in stage.layers}) > 1:
            different = ", ".join(f"layer {layer}: {values[layer]}" for layer in stage.layers)
            raise UnsupportedModelError(
                f"stage '{stage}' cannot become one wide layer: its layers differ in {name} ({different}); "
                "group layers that are alike"
            )
    widths = [config.per_layer_config[layer] for layer in stage.layers]
    if len({(width.num_attention_heads / width.num_key_value_heads) for width in widths}) > 1:
        raise UnsupportedModelError(
            f"stage '{stage}' cannot become one wide layer: its layers differ in the number of query heads to a "
            "key-value head; group layers that are alike"
        )
