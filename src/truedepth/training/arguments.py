"""A recipe as the arguments of `transformers.Trainer`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import TrainingArguments

from truedepth.errors import UsageError
from truedepth.models.loading.placement import resolve_device
from truedepth.parallel.launch import started_ranks
from truedepth.training.recipe import TrainingRecipe

_SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def training_arguments(recipe: TrainingRecipe, folder: Path) -> TrainingArguments:
    """The arguments for a training in `folder`. Where this process is one of several ranks, it joins the others.

    Raises:
        UsageError: packages for training are not installed; the device is not available; the batch does not divide
            into micro-batches and ranks.
    """
    _require_packages(recipe)
    on_cpu = resolve_device(recipe.model.device).type == "cpu"
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=recipe.steps or -1,
        num_train_epochs=recipe.epochs or 1.0,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=_SCHEDULES[recipe.schedule],
        warmup_steps=recipe.warmup,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_gradient_norm,
        bf16=recipe.precision == "bfloat16",
        fp16=recipe.precision == "float16",
        activation_checkpointing=recipe.activation_checkpointing,
        seed=recipe.seed,
        logging_steps=recipe.logging.log_every,
        eval_strategy="steps" if recipe.data.held_out else "no",
        eval_steps=recipe.logging.evaluate_every,
        eval_on_start=bool(recipe.data.held_out),
        save_steps=recipe.logging.save_every,
        save_total_limit=recipe.logging.keep_checkpoints,
        report_to=[],
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and started_ranks() > 1 else None,
        dataloader_pin_memory=torch.cuda.is_available() and not on_cpu,
    )
    arguments._n_gpu = 1  # several GPUs are used by several ranks, not by copies of the model in one process
    ranks = arguments.world_size
    rows = recipe.micro_batch or recipe.batch // ranks
    if rows < 1 or recipe.batch % (rows * ranks):
        raise UsageError(
            f"a batch of {recipe.batch} rows does not divide into micro-batches of {max(rows, 1)} on {ranks} "
            f"rank{'s' if ranks > 1 else ''}; make 'batch' a multiple of {max(rows, 1) * ranks}, or change "
            "'micro_batch'"
        )
    arguments.per_device_train_batch_size = arguments.per_device_eval_batch_size = rows
    arguments.gradient_accumulation_steps = recipe.batch // (rows * ranks)
    return arguments


def _require_packages(recipe: TrainingRecipe) -> None:
    needed = ["accelerate", *(["tensorboard"] if recipe.logging.tensorboard else [])]
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"training needs {' and '.join(missing)}; install what is missing with: pip install {' '.join(missing)}"
        )
