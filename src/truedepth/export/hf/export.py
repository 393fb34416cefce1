"""A plan on a model as a checkpoint of its own, which transformers and vLLM load.

Where a plan only skips or merges layers, the checkpoint is of the source's own architecture, with fewer layers. Where
it has groups, each is one wide layer, and the architecture is truedepth's: the source's own with layers of different
widths (`truedepth.models.modeling_truedepth`, of which each such checkpoint carries a copy).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truedepth.errors import UsageError
from truedepth.export.hf.written import HfExport
from truedepth.families import Ability
from truedepth.models.loading.checkpoint import WIDE_PREFIX
from truedepth.models.loading.placement import DTYPES
from truedepth.models.loading.source import Source, open_source
from truedepth.plan.plan_file import PLAN_FILE, save_plan
from truedepth.records.files import folder_written_aside
from truedepth.records.progress import Progress, silent

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from truedepth.export.hf.self_check import SelfCheck
    from truedepth.models.fuse import WideLayer
    from truedepth.plan import DepthPlan
    from truedepth.search.plan_results import Results

CARD = "README.md"
ABILITY: Ability = "checkpoint"


def export_hf(
    source: str | Source,
    plan: DepthPlan,
    output: str | Path,
    *,
    dtype: str = "auto",
    measured: Results | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> HfExport:
    """Write a plan on a model as a checkpoint, holding a few layers in memory at a time.

    It is written aside and renamed when it is whole. `plan.yaml` in it says what it was made by.

    Args:
        source: whatever `truedepth.load` takes, or a model opened by `open_source`.
        plan: groups must be in form `lp`, and become wide layers.
        output: the folder.
        dtype: `auto` keeps each tensor's type (float32 for what a GGUF file has quantised).
        measured: what the job that found the plan has measured, for the card; ignored if it is of another plan.
        overwrite: replace an earlier export there.

    Raises:
        UsageError: an unknown dtype.
        PlanError: the plan is for another number of layers, or cannot be a checkpoint.
        UnsupportedModelError: the family cannot do what the plan asks for.
        ModelLoadError: the model cannot be found or read.
        OutputError: the folder exists and is not to be replaced, lies in the source, or cannot be written.
    """
    from truedepth.models.fuse import require_fusable
    from truedepth.models.loading.quiet import quiet_transformers

    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype '{dtype}'; choose one of: {', '.join(DTYPES)}")
    output = Path(output)
    opened = open_source(source, ABILITY, trust_remote_code=trust_remote_code) if isinstance(source, str) else source
    require_fusable(opened.config, opened.family, plan)
    opened.require_apart(output)
    with folder_written_aside(output, overwrite=overwrite) as folder, quiet_transformers():
        tokenizer = opened.own_tokenizer()
        nbytes = _write_weights(opened, plan, folder, dtype, progress)
        config = _write_config(opened, plan, folder, dtype)
        tokenizer.save_pretrained(folder)
        save_plan(plan, folder / PLAN_FILE, comment=f"The layers of {opened.name} that this checkpoint's layers are.")
        check = _check(opened, plan, folder, tokenizer, progress)
        architectures: list[str] = config.architectures or []
        written = HfExport(output, architectures[0], plan.effective_depth, nbytes, check)
        _write_card(opened, plan, folder, written, measured)
    return written


def _write_weights(source: Source, plan: DepthPlan, folder: Path, dtype: str, progress: Progress) -> int:
    """All tensors, stage by stage; returns their bytes."""
    import torch

    from truedepth.export.hf.shards import ShardWriter, shard_bytes
    from truedepth.models.fuse import fused_layers

    target: torch.dtype | None = None if dtype == "auto" else getattr(torch, dtype)  # None: each tensor's own

    def read(name: str) -> Tensor:
        tensor = source.read(name)
        return tensor if target is None else tensor.float()  # weights are folded in float32, and rounded once

    total = sum(tensor.nbytes for tensor in source.blank.values())
    shards = ShardWriter(folder, shard_bytes(total))
    layers = f"{source.family.layers}."
    outside = [name for name in source.blank if not name.startswith(layers)]
    embedding = f"{source.family.embedding}."
    for name in sorted(outside, key=lambda name: not name.startswith(embedding)):
        shards.add(name, read(name).to(dtype=target))
    with progress("Writing the stages", plan.effective_depth) as done:
        for index, layer in enumerate(fused_layers(read, source.config, source.family, plan)):
            for name, tensor in _layer_tensors(layer, source, plan).items():
                shards.add(f"{layers}{index}.{name}", tensor.to(dtype=target))
            done()
    shards.finish()
    return shards.nbytes


def _layer_tensors(layer: WideLayer, source: Source, plan: DepthPlan) -> dict[str, Tensor]:
    """With a row for each head in the norms of q and k of all layers, if the checkpoint has wide ones."""
    from truedepth.models.fuse import HEAD_NORMS

    if not _is_wide(source, plan):
        return layer.tensors
    heads = {f"{HEAD_NORMS[0]}.weight": layer.heads, f"{HEAD_NORMS[1]}.weight": layer.kv_heads}
    return {
        name: tensor.expand(heads[name], -1) if name in heads else tensor  # (H, head_dim)
        for name, tensor in layer.tensors.items()
    }


def _is_wide(source: Source, plan: DepthPlan) -> bool:
    return bool(plan.groups) or source.config.model_type.startswith(WIDE_PREFIX)


def _write_config(source: Source, plan: DepthPlan, folder: Path, dtype: str) -> PreTrainedConfig:
    """`config.json`, `generation_config.json`, and the code of the architecture where transformers does not have it."""
    from truedepth.models.fuse import stage_facts

    values = source.config.to_dict() | stage_facts(source.config, source.family, plan)
    for name in ("model_type", "transformers_version", "_name_or_path", "architectures", "auto_map"):
        values.pop(name, None)
    values["dtype"] = _stored_type(source) if dtype == "auto" else dtype
    config = _wide_config(source, plan, values) if _is_wide(source, plan) else _plain_config(source, values)
    config.save_pretrained(folder)
    _write_generation_config(source, config, folder)
    return config


def _plain_config(source: Source, values: dict[str, Any]) -> PreTrainedConfig:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    config_class: Any = type(source.config)
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    config: PreTrainedConfig = config_class(**values, architectures=[model_class.__name__])
    return config


def _wide_config(source: Source, plan: DepthPlan, values: dict[str, Any]) -> PreTrainedConfig:
    from truedepth.models import modeling_truedepth
    from truedepth.models.fuse import fused_layers

    config: Any = source.config
    model_type = WIDE_PREFIX + config.model_type.removeprefix(WIDE_PREFIX)
    classes: Any = modeling_truedepth.WIDE_CLASSES[model_type]
    code = Path(modeling_truedepth.__file__)
    parts = zip(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), classes, strict=True)
    values["head_dim"] = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    values["per_layer_config"] = {
        index: {
            "num_attention_heads": layer.heads,
            "num_key_value_heads": layer.kv_heads,
            "intermediate_size": layer.intermediate,
        }
        for index, layer in enumerate(fused_layers(source.blank.__getitem__, config, source.family, plan))
    }
    wide: PreTrainedConfig = classes[0](
        **values,
        architectures=[classes[2].__name__],
        auto_map={auto: f"{code.stem}.{own.__name__}" for auto, own in parts},
    )
    return wide


def _stored_type(source: Source) -> str:
    """The type of the source's first matrix within a layer."""
    layers = f"{source.family.layers}."
    first = next(name for name, blank in source.blank.items() if name.startswith(layers) and blank.dim() > 1)
    return str(source.read(first).dtype).removeprefix("torch.")


def _write_generation_config(source: Source, config: PreTrainedConfig, folder: Path) -> None:
    from transformers import GenerationConfig

    from truedepth.models.gguf.model import ends_of_text

    name = "generation_config.json"
    if (source.path / name).is_file():
        shutil.copyfile(source.path / name, folder / name)
        return
    generation = GenerationConfig.from_model_config(config)
    if source.file is not None and (ends := ends_of_text(source.file)):
        generation.eos_token_id = ends
    generation.save_pretrained(folder)


def _check(
    source: Source, plan: DepthPlan, folder: Path, tokenizer: PreTrainedTokenizerBase, progress: Progress
) -> SelfCheck | None:
    from truedepth.export.hf.self_check import self_check

    if all(len(stage.layers) == 1 for stage in plan.stages):
        return None
    with progress("Checking the logits", 1) as done:
        check = self_check(source, plan, open_source(str(folder.absolute()), ABILITY), tokenizer)
        done()
    return check


def _write_card(source: Source, plan: DepthPlan, folder: Path, written: HfExport, measured: Results | None) -> None:
    from truedepth.export.hf.card import card
    from truedepth.models import modeling_truedepth

    if _is_wide(source, plan):
        shutil.copyfile(modeling_truedepth.__file__, folder / Path(modeling_truedepth.__file__).name)
    same = measured is not None and measured.plan.to_plan() == plan
    (folder / CARD).write_text(
        card(source.name, source.config.model_type, plan, written, measured if same else None), encoding="utf-8"
    )
