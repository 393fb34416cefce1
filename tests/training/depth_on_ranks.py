"""Tiny trainings for depth, run by `test_depth_ranks.py` in one process or several.

    python depth_on_ranks.py FOLDER NAME

trains the model in FOLDER/model on FOLDER/rows.safetensors, and writes FOLDER/NAME-layerskip.safetensors and so on.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, TrainingArguments, default_data_collator

from truedepth.plan import DepthPlan
from truedepth.training.hooks.layer_calls import wrap_layers
from truedepth.training.layerskip.exit_loss import training_exits
from truedepth.training.layerskip.layer_dropout import LayerDropout
from truedepth.training.layerskip.trainer import LayerSkipSettings, LayerSkipTrainer
from truedepth.training.recovery.objective import Objective
from truedepth.training.recovery.trainer import RecoveryTrainer

FOLDER, NAME = Path(sys.argv[1]), sys.argv[2]
RANK, RANKS = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def main() -> None:
    torch.set_num_threads(1)
    data = load_file(FOLDER / "rows.safetensors")
    rows = [dict(zip(data, values, strict=True)) for values in zip(*data.values(), strict=True)]
    layerskip(rows)
    recover(rows, "one-pass", DepthPlan.parse("0 2 3 5", 6), Objective())
    taught = Objective(kind="distillation", hidden_states=0.5)
    recover(rows, "two-passes", DepthPlan.parse("0 (1|2) 3 5", 6, prefill="full"), taught)
    sharded(data["input_ids"])
    if RANKS > 1:
        torch.distributed.destroy_process_group()


def new_model() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER / "model")


def arguments(name: str) -> TrainingArguments:
    """Two rows a step. SGD, so that weights differ by no more than gradients do."""
    return TrainingArguments(
        output_dir=str(FOLDER / f"{NAME}-{name}"),
        use_cpu=True,
        ddp_backend="gloo" if RANKS > 1 else None,
        report_to=[],
        max_steps=4,
        per_device_train_batch_size=2 // RANKS,
        learning_rate=0.1,
        lr_scheduler_type="constant",
        optim="sgd",
        logging_steps=1,
        save_strategy="no",
        seed=3,
    )


def layerskip(rows: list[dict[str, Tensor]]) -> None:
    """With so much dropout that layers are often left out on one rank only, and on both."""
    model = new_model()
    settings = LayerSkipSettings(p_max=0.6, e_scale=1.0, every=2, watch=(2, 4))
    trainer = LayerSkipTrainer(
        model, arguments("layerskip"), rows, settings=settings, data_collator=default_data_collator
    )
    trainer.train()
    save("layerskip", model.state_dict())


def recover(rows: list[dict[str, Tensor]], name: str, plan: DepthPlan, objective: Objective) -> None:
    """All layers are trained, those that the plan leaves out too."""
    model = new_model()
    trainer = RecoveryTrainer(
        model, arguments(name), rows, plans=[plan], objective=objective, data_collator=default_data_collator
    )
    trainer.train()
    save(name, model.state_dict())


def sharded(ids: Tensor) -> None:
    """Gradients of a model whose layers are sharded. One layer is left out by all rows, two by one row each."""
    model = new_model().train()
    skips = np.array([[False, True, False, True, False, True], [False, True, False, False, True, True]])
    own = slice(RANK, RANK + 1) if RANKS > 1 else slice(2)
    dropout = LayerDropout()
    dropout.skips = skips[own]
    with wrap_layers(model, dropout), training_exits(model) as objective:
        objective.weights = {2: 0.5, 5: 0.5}
        if RANKS > 1:
            mesh = init_device_mesh("cpu", (RANKS,))
            for layer in model.model.layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
        model(ids[own], labels=ids[own], use_cache=False, logits_to_keep=1).loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    save(
        "sharded",
        {name: getattr(value, "full_tensor", lambda value=value: value)() for name, value in gradients.items()},
    )


def save(name: str, tensors: dict[str, Tensor]) -> None:
    if RANK == 0:
        save_file({key: value.clone() for key, value in tensors.items()}, FOLDER / f"{NAME}-{name}.safetensors")


main()
