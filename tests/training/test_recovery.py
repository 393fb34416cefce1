"""Recovery: what a step under a plan learns from, what is trained, and what stays as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from transformers import DynamicCache, TrainingArguments

from truedepth.errors import UnsupportedModelError, UsageError
from truedepth.families import family_of
from truedepth.models.rewire import applied_plan, apply, causal_lm, mark_decoding, restore
from truedepth.plan import DepthPlan
from truedepth.training.data.rows import TokenRows
from truedepth.training.recovery.objective import Objective, compared_layers
from truedepth.training.recovery.recipe import Recover, prepare_recovery
from truedepth.training.recovery.teacher import Teacher
from truedepth.training.recovery.trainer import RecoveryTrainer
from truedepth.training.recovery.two_passes import cut

NUM_LAYERS = 6
PAIRS = "0 1 (2|3) 4 5"
SKIPS = "0 2 3 5"
DISTILLATION = Objective(kind="distillation", temperature=2.0, hidden_states=0.5)


@pytest.fixture
def trainer_of(tmp_path: Path, random_items: Any) -> Callable[..., RecoveryTrainer]:
    """`trainer_of(model, plans, settings={...}, packed=True, **arguments)`: four steps of four rows."""

    def make(model: Any, *plans: str, settings: Any = None, packed: bool = True, **arguments: Any) -> Any:
        recover = Recover(plans=plans, **(settings or {}))
        model, ready, originals = prepare_recovery(model, recover)
        chosen: dict[str, Any] = {
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            "report_to": [],
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_strategy": "no",
            **arguments,
        }
        return RecoveryTrainer(
            model,
            TrainingArguments(**chosen),
            TokenRows(random_items(40), 24, packed=packed),
            TokenRows(random_items(10, seed=1), 24, packed=packed),
            plans=ready,
            objective=recover.objective,
            originals=originals,
            prompt_tokens=recover.prompt_tokens,
        )

    return make


def batch_of(trainer: RecoveryTrainer, count: int = 4) -> dict[str, Tensor]:
    rows: Any = trainer.train_dataset
    batch: dict[str, Tensor] = rows.collate([rows[at] for at in range(count)])
    batch.pop("row")
    return batch


def loss_of(trainer: RecoveryTrainer, batch: dict[str, Tensor]) -> Tensor:
    """In training mode, as in a step of this batch alone."""
    batch = dict(batch)
    count = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    with trainer.prepared():
        loss: Tensor = trainer.compute_loss(trainer.model.train(), batch, num_items_in_batch=count)
    return loss


def state(model: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def layers_that_differ(first: dict[str, Tensor], second: dict[str, Tensor]) -> set[str]:
    """Numbers of layers, and names of what is outside of them."""
    names = [name for name in first if not torch.equal(first[name], second[name])]
    return {name.split(".layers.")[1].split(".")[0] if ".layers." in name else name for name in names}


# What a step learns from


@pytest.mark.parametrize("notation", [PAIRS, SKIPS])
def test_language_model_loss(family_name: str, notation: str, tiny_model: Any, trainer_of: Any) -> None:
    """The loss of the model under the plan, on packed rows, with the gradients of the changed layers alone."""
    trainer = trainer_of(tiny_model(family_name), notation)
    batch = batch_of(trainer)
    loss = loss_of(trainer, batch)
    loss.backward()
    found = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}

    model = apply(tiny_model(family_name).train(), DepthPlan.parse(notation, NUM_LAYERS))
    logits = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    expected = cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    torch.testing.assert_close(loss, expected)
    expected.backward()
    wanted = {name: p.grad for name, p in model.named_parameters() if name in found}
    assert {name.split(".")[2] for name in found} == (set("23") if notation == PAIRS else set("0235"))
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", ["llama", "gemma2", "phi3"])
def test_distillation(name: str, tiny_model: Any, trainer_of: Any) -> None:
    """By the equations: divergence of the distributions, and relative distance of the states after each stage."""
    trainer = trainer_of(tiny_model(name), PAIRS, settings={"objective": DISTILLATION, "layers": "all"})
    batch = batch_of(trainer)
    loss = loss_of(trainer, batch)

    model = tiny_model(name)
    inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "use_cache": False}
    loss_mask = batch["labels"][:, 1:] != -100
    with torch.no_grad():
        base = model(**inputs, output_hidden_states=True)
        apply(model, DepthPlan.parse(PAIRS, NUM_LAYERS))
        own = model(**inputs, output_hidden_states=True)
    probabilities = [(output.logits[:, :-1][loss_mask] / 2).log_softmax(-1) for output in (own, base)]
    divergence = kl_div(*probabilities, reduction="sum", log_target=True) * 4 / loss_mask.sum()
    assert float(trainer.extra_losses["divergence"]) == pytest.approx(float(divergence), rel=1e-4)
    tokens = cross_entropy(own.logits[:, :-1][loss_mask], batch["labels"][:, 1:][loss_mask])
    assert float(trainer.extra_losses["cross_entropy"]) == pytest.approx(float(tokens), rel=1e-4)
    # Stages 2 to 4 (layers 2|3, 4, 5) against the unmodified model after layers 3, 4, 5. The last one's states are not
    # at hand: they have gone through the norm.
    pairs = [(own.hidden_states[stage + 1], base.hidden_states[layer + 1]) for stage, layer in ((2, 3), (3, 4))]
    distances = [
        ((s - t)[:, :-1][loss_mask].square().sum(-1) / t[:, :-1][loss_mask].square().sum(-1)).mean() for s, t in pairs
    ]
    distance = float(trainer.extra_losses["distance"])
    assert 3 * distance > sum(map(float, distances)) > 0
    assert float(loss.detach()) == pytest.approx(float(divergence) + 0.5 * distance, rel=1e-4)


def test_compared_layers() -> None:
    assert compared_layers(DepthPlan.parse(PAIRS, 6)) == {2: 3, 4: 4, 5: 5}
    assert compared_layers(DepthPlan.parse("0-2 5", 6)) == {2: 2, 5: 5}
    assert compared_layers(DepthPlan.parse("0 2 1 5", 6)) == {0: 0, 2: 2, 1: 2, 5: 5}
    assert compared_layers(DepthPlan.full(6)) == {}


def test_hidden_states_alone(tiny_model: Any, trainer_of: Any) -> None:
    """An unchanged plan is at no distance and at no divergence; its gradients are zero."""
    trainer = trainer_of(tiny_model("llama"), "0-5", settings={"objective": DISTILLATION, "layers": "2-4"})
    loss = loss_of(trainer, batch_of(trainer))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-5)
    assert all(p.grad.abs().max() < 1e-4 for p in trainer.model.parameters() if p.grad is not None)


# Prompts by every layer


def test_cut() -> None:
    ids = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 0, 0]])
    labels = torch.tensor([[-100, -100, -100, 8, 9], [-100, 6, 7, -100, -100]])
    passes = cut(ids, labels, torch.tensor([3, 1]))
    assert passes.prompts[0].tolist() == [5, 6, 7]
    assert passes.prompts[1, 2] == 5
    assert passes.prompt_positions.tolist() == [[0, 1, 2], [0, 0, 0]]
    assert passes.seen.tolist() == [[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1]]
    assert passes.responses[0, :2].tolist() == [8, 9]
    assert passes.responses[1].tolist() == [6, 7, 0, 0]
    assert passes.response_positions.tolist() == [[3, 4, 5, 6], [1, 2, 3, 4]]
    assert passes.labels.tolist() == [[8, 9, -100, -100], [6, 7, -100, -100]]


def two_pass_loss(model: Any, row: dict[str, Tensor], start: int) -> Tensor:
    """Of one row, unfilled: summed, the first response token by what the prompt's last position says."""
    ids, labels = row["input_ids"][None], row["labels"]
    cache = DynamicCache(config=model.config)
    before = model(ids[:, :start], past_key_values=cache, use_cache=True).logits[:, -1:]
    mark_decoding(cache)
    after = model(ids[:, start:], past_key_values=cache, use_cache=True).logits
    logits = torch.cat([before, after], 1)[0, :-1]
    return cross_entropy(logits, labels[start:], reduction="sum")


@pytest.mark.parametrize("notation", [SKIPS, "1 (2|4) 5"])
@pytest.mark.parametrize("family_name", ["llama", "phi3", "gemma2", "gemma3", "smollm3", "mixtral"])
def test_two_passes(family_name: str, notation: str, tiny_model: Any, trainer_of: Any) -> None:
    """Rows of uneven prompts and responses together are as each by itself, and gradients are whole."""
    settings = {"prefill": "full", "layers": "all"}
    trainer = trainer_of(tiny_model(family_name), notation, settings=settings, packed=False)
    rows = trainer.train_dataset
    loss = loss_of(trainer, batch_of(trainer))
    loss.backward()
    found = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}

    model = apply(tiny_model(family_name).train(), DepthPlan.parse(notation, NUM_LAYERS, prefill="full"))
    total = sum(two_pass_loss(model, rows[at], int(rows[at]["response_start"])) for at in range(4))
    expected = total / sum(int((rows[at]["labels"] != -100).sum()) for at in range(4))
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    expected.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_documents_have_the_prompt_that_is_asked_for(tiny_model: Any, trainer_of: Any) -> None:
    settings = {"prefill": "full", "prompt_tokens": 5}
    trainer = trainer_of(tiny_model("llama"), SKIPS, settings=settings, packed=False)
    rows = trainer.train_dataset
    batch = batch_of(trainer)
    loss = loss_of(trainer, batch)
    model = apply(tiny_model("llama").train(), DepthPlan.parse(SKIPS, NUM_LAYERS, prefill="full"))
    starts = [
        min(max(int(rows[at]["response_start"]), 5), int((rows[at]["labels"] != -100).nonzero()[-1])) for at in range(4)
    ]
    assert any(start != int(rows[at]["response_start"]) for at, start in enumerate(starts))
    loss_tokens = sum(int((rows[at]["labels"][start:] != -100).sum()) for at, start in enumerate(starts))
    assert trainer._get_num_items_in_batch([batch], torch.device("cpu")) == loss_tokens
    total = sum(two_pass_loss(model, rows[at], start) for at, start in enumerate(starts))
    torch.testing.assert_close(loss, total / loss_tokens, rtol=1e-4, atol=1e-5)


def test_two_passes_are_taught_by_the_whole_model(tiny_model: Any, trainer_of: Any) -> None:
    settings = {"prefill": "full", "objective": DISTILLATION, "layers": "all"}
    trainer = trainer_of(tiny_model("llama"), SKIPS, settings=settings, packed=False)
    rows = trainer.train_dataset
    loss_of(trainer, batch_of(trainer))
    divergence, loss_tokens = 0.0, 0
    for at in range(4):
        start, ids = int(rows[at]["response_start"]), rows[at]["input_ids"][None]
        model = tiny_model("llama")
        with torch.no_grad():
            base = model(ids).logits[0, start - 1 : -1]
            apply(model, DepthPlan.parse(SKIPS, NUM_LAYERS, prefill="full"))
            cache = DynamicCache(config=model.config)
            before = model(ids[:, :start], past_key_values=cache).logits[:, -1:]
            mark_decoding(cache)
            own = torch.cat([before, model(ids[:, start:], past_key_values=cache).logits], 1)[0, :-1]
        counted = rows[at]["labels"][start:] != -100
        logs = [(logits[counted] / 2).log_softmax(-1) for logits in (own, base)]
        divergence += 4 * float(kl_div(*logs, reduction="sum", log_target=True))
        loss_tokens += int(counted.sum())
    assert float(trainer.extra_losses["divergence"]) == pytest.approx(divergence / loss_tokens, rel=1e-4)


# Who teaches


@pytest.mark.parametrize("settings", [{}, {"layers": "all"}, {"lora": {"rank": 2}}])
@pytest.mark.parametrize("tied", [False, True])
def test_the_teacher_stays_as_it_was(settings: Any, tied: bool, tiny_model: Any, trainer_of: Any) -> None:
    """While the model learns; and only what is trained is copied."""
    settings = {**settings, "objective": {"kind": "distillation"}}
    trainer = trainer_of(tiny_model("llama", tie_word_embeddings=tied), PAIRS, settings=settings, learning_rate=0.1)
    batch = batch_of(trainer)
    inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}
    trainer.train()
    with torch.no_grad():
        expected = tiny_model("llama", tie_word_embeddings=tied)(**inputs, use_cache=False).logits
    teacher = trainer._teacher
    found = teacher.logits(teacher.read(inputs).final)
    torch.testing.assert_close(found, expected)
    core = causal_lm(trainer.model)
    assert applied_plan(core) is None
    trained = {name for name, p in core.named_parameters(remove_duplicate=False) if p.requires_grad}
    assert set(teacher._own) == trained


def test_the_teacher_of_a_merged_model_is_the_unmerged_one(tiny_model: Any, token_ids: Any) -> None:
    for lora in (None, {"rank": 2}):
        model, ids = tiny_model("llama"), token_ids(2, 8)
        expected = model(ids).logits
        model, plans, originals = prepare_recovery(model, Recover(plans=("0 (1+2) 3-5",), lora=lora))
        core = causal_lm(model)
        apply(core, plans[0])
        teacher = Teacher(core, family_of(core.config), originals)
        torch.testing.assert_close(teacher.logits(teacher.read({"input_ids": ids}).final), expected)
        assert applied_plan(core) is plans[0]


# What is trained


@pytest.mark.parametrize(
    ("layers", "expected"),
    [("changed", {"2", "3"}), ("3-5", {"3", "4", "5"}), ("2", {"2"})],
)
def test_only_the_layers_asked_for(layers: str, expected: set[str], tiny_model: Any, trainer_of: Any) -> None:
    model = tiny_model("llama")
    before = state(model)
    trainer_of(model, PAIRS, settings={"layers": layers}).train()
    assert layers_that_differ(before, state(model)) == expected
    assert applied_plan(model) is None


def test_all(tiny_model: Any, trainer_of: Any) -> None:
    model = tiny_model("llama")
    before = state(model)
    trainer_of(model, SKIPS, settings={"layers": "all"}).train()
    others = {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"}
    assert layers_that_differ(before, state(model)) == set("0235") | others


def test_lora_is_merged_at_the_end(tiny_model: Any, trainer_of: Any) -> None:
    from truedepth.training.adapters import merged

    model = tiny_model("llama")
    before = state(model)
    trainer = trainer_of(model, PAIRS, settings={"lora": {"rank": 2}}, learning_rate=0.1)
    trainer.train()
    ids = batch_of(trainer)["input_ids"]
    trainer.model.eval()
    expected = trainer.model(ids).logits
    whole = merged(trainer.model)
    assert whole.state_dict().keys() == before.keys()
    assert layers_that_differ(before, state(whole)) == set("23")
    torch.testing.assert_close(whole(ids).logits, expected, rtol=1e-3, atol=1e-4)


def test_a_merged_layer_keeps_its_training(tiny_model: Any, trainer_of: Any) -> None:
    model = tiny_model("llama")
    trainer = trainer_of(model, "0 (1+2) 3-5")
    batch = batch_of(trainer)
    first = trainer.evaluate()["eval_loss"]
    assert first == pytest.approx(trainer.evaluate()["eval_loss"])
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < first
    (plan,) = trainer.plans
    logits = apply(model, plan)(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    restore(model)
    assert float(loss_of(trainer, batch).detach()) == pytest.approx(float(loss.detach()), rel=1e-4)


def test_recovery_recovers(tiny_model: Any, trainer_of: Any) -> None:
    """Distilled from the unmodified model, the plan comes nearer to it on text it has not seen."""
    trainer = trainer_of(
        tiny_model("llama"), PAIRS, settings={"objective": {"kind": "distillation"}}, max_steps=40, logging_steps=40
    )
    before, _, after = trainer.evaluate(), trainer.train(), trainer.evaluate()
    assert after["eval_loss"] < 0.6 * before["eval_loss"]
    assert after["eval_divergence"] == pytest.approx(after["eval_loss"])


# Several plans


def test_each_step_trains_one_of_several_plans(tiny_model: Any, trainer_of: Any) -> None:
    """Drawn by seed and step; held-out text is judged under all of them."""
    settings = {"prefill": "full", "layers": "all"}
    trainer = trainer_of(
        tiny_model("llama"), "0 2 3 5", "0 3 5", "0 5", settings=settings, packed=False, max_steps=12, seed=4
    )
    trainer.train()
    lines = (Path(trainer.args.output_dir) / "training.jsonl").read_text(encoding="utf-8").splitlines()
    drawn = [[name for name in json.loads(line)["values"] if name.startswith("cross_entropy")] for line in lines]
    assert all(len(names) == 1 for names in drawn)
    assert len({names[0] for names in drawn}) == 3
    found = trainer.evaluate()
    each = [found[f"eval_cross_entropy_plan_{number}"] for number in (1, 2, 3)]
    assert found["eval_loss"] == pytest.approx(sum(each) / 3)


def test_interrupted_and_resumed(tiny_model: Any, trainer_of: Any) -> None:
    """Bit for bit the same: plans are drawn alike, and the teacher is the one from before."""
    settings = {"objective": {"kind": "distillation"}, "layers": "all"}
    arguments = {"save_strategy": "steps", "save_steps": 2, "settings": settings}
    whole = trainer_of(tiny_model("llama"), PAIRS, "0 1 (2|4) 5", **arguments)
    whole.train()
    expected = state(whole.model)
    resumed = trainer_of(tiny_model("llama"), PAIRS, "0 1 (2|4) 5", **arguments)
    resumed.train(str(Path(whole.args.output_dir) / "checkpoint-2"))
    assert layers_that_differ(expected, state(resumed.model)) == set()


@pytest.mark.parametrize("settings", [{"lora": {"rank": 2}}, {"objective": DISTILLATION}])
def test_activation_checkpointing_and_accumulation(settings: Any, tiny_model: Any, trainer_of: Any) -> None:
    plain = trainer_of(tiny_model("llama"), PAIRS, settings=settings, optim="sgd")
    plain.train()
    arguments = {"activation_checkpointing": True, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    other = trainer_of(tiny_model("llama"), PAIRS, settings=settings, optim="sgd", **arguments)
    other.train()
    for name, value in state(plain.model).items():
        if "lora_A" not in name:  # drawn at random
            torch.testing.assert_close(state(other.model)[name], value, rtol=1e-3, atol=1e-3, msg=name)


def test_bfloat16_autocast(tiny_model: Any, trainer_of: Any) -> None:
    for packed, more in ((True, {}), (False, {"prefill": "full"})):
        settings = {"objective": {"kind": "distillation"}, **more}
        losses = []
        for bf16 in (False, True):
            trainer = trainer_of(tiny_model("llama"), SKIPS, settings=settings, packed=packed, bf16=bf16, max_steps=1)
            trainer.train()
            losses.append(trainer.state.log_history[0]["loss"])
        assert losses[1] == pytest.approx(losses[0], rel=0.05)


# Refusals


def test_refusals(tiny_model: Any, trainer_of: Any) -> None:
    cases: list[tuple[Any, str, dict[str, Any], dict[str, Any]]] = [
        (UsageError, "packed: false", {"prefill": "full"}, {}),
        (
            UsageError,
            "activation checkpointing",
            {"prefill": "full"},
            {"packed": False, "activation_checkpointing": True},
        ),
        (UsageError, "'layers' is '9'", {"layers": "9"}, {}),
        (UsageError, "'layers' is 'some'", {"layers": "some"}, {}),
    ]
    for error, message, settings, arguments in cases:
        with pytest.raises(error, match=message):
            trainer_of(tiny_model("llama"), SKIPS, settings=settings, **arguments)
    with pytest.raises(UsageError, match="nothing would be trained"):
        trainer_of(tiny_model("llama"), "0-5")
    with pytest.raises(UsageError, match="the only one"):
        trainer_of(tiny_model("llama"), "0 (1+2) 3-5", "0-4")
    with pytest.raises(UnsupportedModelError, match="merge"):
        trainer_of(tiny_model("mixtral"), "0 (1+2) 3-5")
