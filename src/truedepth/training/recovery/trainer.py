"""Training under a plan, to win back what skipping, pairing or merging layers has cost."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import DynamicCache, TrainingArguments

from truedepth.errors import UsageError
from truedepth.families import family_of
from truedepth.models.rewire import applied_plan, apply, causal_lm, mark_decoding, restore
from truedepth.plan import DepthPlan
from truedepth.training.data.rows import IGNORED, TokenRows
from truedepth.training.hooks.custom_loss import own_loss
from truedepth.training.hooks.hidden_states import Reading, reading
from truedepth.training.recovery.objective import Objective, Recovery, RowStates, compared_layers
from truedepth.training.recovery.teacher import Teacher
from truedepth.training.recovery.two_passes import cut
from truedepth.training.trainer.depth_trainer import DepthTrainer


class RecoveryTrainer(DepthTrainer):
    """Trains a model under a plan, or under one of several plans drawn at each step.

    With `prefill="full"` a plan runs the responses only: prompts are read by every layer, and responses by the plan
    over the cache that this leaves, as in unified skipping's training (arXiv 2404.06954); the loss is that
    of the responses. Rows must be single items then, not packed ones.

    Held-out loss with several plans is the mean over them.

    Args:
        model, args, train_dataset, others, options: see `DepthTrainer`. What `requires_grad` is trained. The
            model must not run a plan.
        plans: without merged stages (see `bake_merges`).
        objective: what is trained for.
        originals: weights of the unmodified model that are no longer in `model`, by name.
        prompt_tokens: of rows whose prompt is shorter, this many tokens are the prompt.

    Attributes:
        plans: as given.

    Raises:
        UnsupportedModelError: the model's family is unknown, or cannot run a plan.
        PlanError: a plan is for another number of layers.
        UsageError: a plan with `prefill="full"`, and packed rows or activation checkpointing.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        train_dataset: Dataset[dict[str, Tensor]],
        *others: Any,
        plans: Sequence[DepthPlan],
        objective: Objective,
        originals: dict[str, Tensor] | None = None,
        prompt_tokens: int = 0,
        **options: Any,
    ) -> None:
        core = causal_lm(model)
        self._family = family_of(core.config)
        self.plans = tuple(plans)
        for plan in self.plans:
            restore(apply(core, plan))  # refuses what cannot run
        self._refuse_for_two_passes(args, train_dataset)
        args = copy.copy(args)
        if self._leaves_out_trained_layers(core):
            args.ddp_find_unused_parameters = True
        super().__init__(model, args, train_dataset, *others, **options)
        self._teacher = Teacher(core, self._family, originals or {}) if objective.needs_teacher else None
        self._objective = objective
        self._recovery = Recovery(core, self._family, objective, self._teacher)
        self._prompt_tokens = prompt_tokens
        # What the loss, which is computed inside of the model's forward, looks at.
        self._read = Reading()
        self._before: Tensor | None = None
        self._taught: RowStates | None = None

    def _refuse_for_two_passes(self, args: TrainingArguments, rows: Any) -> None:
        full = next((plan for plan in self.plans if plan.prefill == "full"), None)
        if full is None:
            return
        if args.activation_checkpointing:
            raise UsageError(
                f"the plan '{full}' reads prompts by every layer and responses over the cache that this leaves, which "
                "activation checkpointing does not keep; switch it off, or train with prefill 'plan'"
            )
        if isinstance(rows, TokenRows) and rows.packed:
            raise UsageError(
                f"the plan '{full}' reads prompts by every layer, so each row must be one item; set 'packed: false'"
            )

    def _leaves_out_trained_layers(self, core: Any) -> bool:
        """Whether parameters are trained that get no gradient at some step."""
        layers = self._family.decoder_layers(core)
        trained = {at for at, layer in enumerate(layers) if any(p.requires_grad for p in layer.parameters())}
        return any(plan.prefill == "plan" and not trained <= {*plan.layers_used} for plan in self.plans)

    @contextmanager
    def preparation(self) -> Iterator[None]:
        """The model with our loss; in the end without a plan."""
        core = causal_lm(cast(nn.Module, self.model))
        try:
            with own_loss(core, self._loss):
                yield
        finally:
            restore(core)

    # The loss

    def loss_of(self, model: nn.Module, inputs: dict[str, Any], num_items: Tensor | int | None) -> tuple[Tensor, Any]:
        """The loss under the step's plan; in evaluation, the mean over all plans."""
        chosen = [self._drawn()] if model.training else range(len(self.plans))
        results = [self._under(at, model, inputs, num_items) for at in chosen]
        losses = [loss for loss, _ in results]
        loss = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
        return loss, results[0][1]

    def _drawn(self) -> int:
        """Which plan the present step trains: the same on all ranks, and after a resume."""
        return int(np.random.default_rng((self.args.seed, self.state.global_step)).integers(len(self.plans)))

    def _under(
        self, at: int, model: nn.Module, inputs: dict[str, Any], num_items: Tensor | int | None
    ) -> tuple[Tensor, Any]:
        plan, core = self.plans[at], causal_lm(cast(nn.Module, self.model))
        if applied_plan(core) is not plan:
            apply(core, plan)
        run = self._two_passes if plan.prefill == "full" else self._one_pass
        result: tuple[Tensor, Any] = run(plan, model, inputs, num_items)
        self._note(at, result[0], num_items)
        return result

    def _one_pass(
        self, plan: DepthPlan, model: nn.Module, inputs: dict[str, Any], num_items: Tensor | int | None
    ) -> Any:
        given = {name: value for name, value in inputs.items() if name not in ("labels", "response_start", "row")}
        self._taught = self._teach(plan, given)
        return self._forward(plan, model, {**inputs, "use_cache": False}, num_items)

    def _two_passes(
        self, plan: DepthPlan, model: nn.Module, inputs: dict[str, Any], num_items: Tensor | int | None
    ) -> Any:
        passes = cut(inputs["input_ids"], inputs["labels"], self._starts(inputs))
        prompt = passes.prompts.shape[1]
        whole = {
            "input_ids": torch.cat([passes.prompts, passes.responses], 1),
            "attention_mask": passes.seen,
            "position_ids": torch.cat([passes.prompt_positions, passes.response_positions], 1),
        }
        # From a prompt's last position on: what it says there is the response's first token.
        self._taught = self._teach(plan, whole, prompt)
        core = causal_lm(cast(nn.Module, self.model))
        cache = DynamicCache(config=core.config)
        with reading(core, self._family) as read:
            model(
                input_ids=passes.prompts,
                attention_mask=passes.prompt_seen,
                position_ids=passes.prompt_positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        mark_decoding(cache)
        response = {
            "input_ids": passes.responses,
            "attention_mask": passes.seen,
            "position_ids": passes.response_positions,
            "labels": passes.labels,
            "past_key_values": cache,
            "use_cache": True,
        }
        return self._forward(plan, model, response, num_items, read.final[:, -1:])

    def _teach(self, plan: DepthPlan, inputs: dict[str, Any], prompt: int = 0) -> RowStates | None:
        """What the unmodified model has at the positions of `inputs`; after a prompt, from its last one on."""
        if self._teacher is None:
            return None
        pairs = compared_layers(plan) if self._objective.hidden_states else {}
        with self.accelerator.autocast():
            states = self._teacher.read(inputs, list(pairs.values()))
        outputs = {own: states.outputs[taught][:, prompt:] for own, taught in pairs.items()}
        return RowStates(states.final[:, max(prompt - 1, 0) :], outputs)

    def _forward(
        self,
        plan: DepthPlan,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items: Tensor | int | None,
        before: Tensor | None = None,
    ) -> Any:
        """The forward that has the loss. `before`: the final state of the position before its first one, (B, 1, D)."""
        core = causal_lm(cast(nn.Module, self.model))
        compared = list(compared_layers(plan)) if self._objective.hidden_states else []
        self._before = before
        with reading(core, self._family, compared) as self._read:
            return super().loss_of(model, {**inputs, "logits_to_keep": 1}, num_items)

    def _loss(self, labels: Tensor, num_items: Tensor | int | None) -> Tensor:
        """Called inside of the model's forward."""
        read, before = self._read, self._before
        final = read.final
        if before is not None:
            final = torch.cat([before, final], 1)  # (B, R + 1, D)
            labels = torch.cat([labels.new_full((len(labels), 1), IGNORED), labels], 1)
        return self._recovery.loss(RowStates(final, read.outputs), self._taught, labels, num_items)

    def _note(self, at: int, loss: Tensor, num_items: Tensor | int | None) -> None:
        found = self._recovery.found
        assert found is not None
        tokens = max(found.tokens, 1)
        sums = {"cross_entropy": found.cross_entropy, "divergence": found.divergence, "distance": found.distance}
        for name, total in sums.items():
            if total is not None:
                figure = self.per_token(total, num_items, tokens)
                ending = f"_plan_{at + 1}" if len(self.plans) > 1 else ""
                self.extra_losses[name + ending] = figure

    # Prompts

    def _starts(self, inputs: dict[str, Any]) -> Tensor:
        """Where the responses start, (B,)."""
        if "response_start" not in inputs:
            raise UsageError("rows have no 'response_start', which plans with prefill 'full' need; set 'packed: false'")
        loss_mask = inputs["labels"] != IGNORED  # (B, T)
        last = loss_mask.shape[1] - 1 - loss_mask.flip(1).int().argmax(1)
        starts = inputs["response_start"].clamp(min=self._prompt_tokens)
        return torch.minimum(starts, last).clamp(min=1, max=loss_mask.shape[1] - 1)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Prompts are not trained on, and not counted."""
        if self._prompt_tokens:
            for batch in batch_samples:
                positions = torch.arange(batch["labels"].shape[1], device=batch["labels"].device)
                batch["labels"] = batch["labels"].masked_fill(positions < self._starts(batch)[:, None], IGNORED)
        return super()._get_num_items_in_batch(batch_samples, device)
