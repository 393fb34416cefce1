"""Loading a rank's part of a model: tensor by tensor, keeping only what the rank holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from truedepth.errors import UnsupportedModelError
from truedepth.models.loading.checkpoint import GENERATION_CONFIG, WIDE_PREFIX
from truedepth.models.loading.load import LoadedModel, blank_model, finish_loading
from truedepth.models.loading.memory import require_memory
from truedepth.models.loading.placement import resolve_dtype
from truedepth.models.loading.quiet import quiet_transformers
from truedepth.models.loading.source import Source, open_source
from truedepth.models.rewire import apply
from truedepth.models.streamed import make_buffers
from truedepth.parallel.partition import pieces_of, require_divisible
from truedepth.parallel.ranks import Ranks
from truedepth.parallel.split import Cut, split
from truedepth.plan import DepthPlan


@dataclass(frozen=True)
class SplitModels:
    """This rank's part of a model, once for each of some plans.

    Attributes:
        models: by the plans' names; each runs its plan. What plans have in common is in memory once.
        plans: by name.
        tokenizer, name: as of a `LoadedModel`.
    """

    models: Mapping[str, PreTrainedModel]
    plans: Mapping[str, DepthPlan]
    tokenizer: PreTrainedTokenizerBase
    name: str

    def loaded(self, name: str) -> LoadedModel:
        """The model of one plan."""
        return LoadedModel(self.models[name], self.tokenizer, self.name)


def load_split(
    source: str,
    plans_for: Callable[[int], Mapping[str, DepthPlan]],
    ranks: Ranks,
    *,
    device: torch.device,
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> SplitModels:
    """Load this rank's part of whatever `truedepth.load` takes, for each of some plans.

    Memory holds the parts and one whole tensor at a time.

    Args:
        plans_for: gives the plans by name, for a number of layers.
        device: where this rank computes.

    Raises:
        UsageError, ModelLoadError: as `truedepth.load`.
        PlanError: a plan for another number of layers, or one that cannot be cut for so many ranks.
        UnsupportedModelError: a family whose layers cannot be cut, or that cannot run a plan.
    """
    opened = open_source(source, "split", trust_remote_code=trust_remote_code)
    plans = dict(plans_for(opened.config.num_hidden_layers))
    kind = resolve_dtype(dtype, device)
    with quiet_transformers():
        tokenizer = opened.own_tokenizer()
        parts = {name: _part(opened, plan, ranks, trust_remote_code) for name, plan in plans.items()}
        for part in parts.values():
            require_memory(source, part.model, kind, device)
        _fill(opened, list(parts.values()), kind, device)
        models = {name: _finish(opened, part, tokenizer, device) for name, part in parts.items()}
    return SplitModels(models, plans, tokenizer, source)


@dataclass(frozen=True)
class _RankModel:
    """A model on the meta device, to be filled."""

    model: PreTrainedModel
    plan: DepthPlan
    cuts: Mapping[str, Cut]

    def writes_to(self, name: str) -> bool:
        """Whether the plan will write to a parameter, so that no other plan may share it."""
        merged = {layer for stage in self.plan.stages if stage.merged for layer in stage.layers}
        return any(f".{layer}." in name for layer in merged)


def _part(source: Source, plan: DepthPlan, ranks: Ranks, trust: bool) -> _RankModel:
    blank = blank_model(source.config, trust_remote_code=trust)
    if blank.config.model_type.startswith(WIDE_PREFIX):
        raise UnsupportedModelError(
            "the checkpoint has wide layers already; give the model that it was made of, and its plan"
        )
    require_divisible(plan, blank.config, ranks.size)
    return _RankModel(blank, plan, split(blank, pieces_of(plan, ranks.rank, ranks.size), ranks))


def _fill(source: Source, parts: list[_RankModel], dtype: torch.dtype, device: torch.device) -> None:
    """Read each tensor once, and give every part what it keeps of it."""
    wanted: dict[str, list[tuple[_RankModel, str, Cut]]] = {}
    for part in parts:
        for name, cut in part.cuts.items():
            wanted.setdefault(cut.source, []).append((part, name, cut))
    for stored, takers in wanted.items():
        tensor = source.read(stored)
        kept: dict[Cut, Tensor] = {}
        for part, name, cut in takers:
            if cut not in kept or part.writes_to(name):
                piece = cut.of(tensor).to(device=device, dtype=dtype, copy=True)
                kept[cut] = piece.contiguous()
            module, _, parameter = name.rpartition(".")
            part.model.get_submodule(module).register_parameter(parameter, nn.Parameter(kept[cut], requires_grad=False))


def _finish(
    source: Source, part: _RankModel, tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> PreTrainedModel:
    """What loading does besides weights, and the plan."""
    for module in part.model.modules():
        make_buffers(part.model, module)
    model = part.model.eval()
    if source.file is not None:
        from truedepth.models.gguf.model import ends_of_text

        ends = ends_of_text(source.file)
        if model.generation_config is not None and len(ends) > 1:
            model.generation_config.eos_token_id = ends
    elif (source.path / GENERATION_CONFIG).is_file():
        model.generation_config = GenerationConfig.from_pretrained(source.path, local_files_only=True)
    finished: PreTrainedModel = finish_loading(model, tokenizer, source.name, device).model
    if not part.plan.is_full:
        apply(finished, part.plan)
    return finished
