"""LayerSkip's training: what a step learns from, and that it composes with what people train with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import TrainingArguments, default_data_collator

from truedepth.errors import UsageError
from truedepth.models.rewire import apply, restore
from truedepth.models.stages import to_logits
from truedepth.plan import DepthPlan
from truedepth.training.layerskip.layer_dropout import draw_skips
from truedepth.training.layerskip.trainer import LayerSkipSettings, LayerSkipTrainer

NUM_LAYERS = 6
HEAVY = LayerSkipSettings(p_max=0.6, e_scale=1.0, curriculum="rotational", every=2, watch=(2, 4))


def rows(count: int, length: int = 10) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 64, (count, length), generator=generator)
    labels = ids.masked_fill(torch.rand(count, length, generator=generator) < 0.3, -100)
    return [{"input_ids": a, "labels": b} for a, b in zip(ids, labels, strict=True)]


@pytest.fixture
def trainer_of(tmp_path: Path) -> Callable[..., LayerSkipTrainer]:
    """`trainer_of(model, settings, held_out=None, **arguments)`: a trainer of four steps, four rows each."""

    def make(model: Any, settings: LayerSkipSettings = HEAVY, held_out: Any = None, **arguments: Any) -> Any:
        chosen = {
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            "report_to": "none",
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_strategy": "no",
            "seed": 3,
            **arguments,
        }
        return LayerSkipTrainer(
            model,
            TrainingArguments(**chosen),
            rows(16),
            held_out,
            settings=settings,
            data_collator=default_data_collator,
        )

    return make


def logged(trainer: LayerSkipTrainer) -> list[dict[str, float]]:
    lines = Path(str(trainer.args.output_dir), "training.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["values"] for line in lines]


# What a step learns from


def test_weights_and_probabilities_follow_the_steps() -> None:
    """L = 4, p_max 0.2, as computed by hand in the tests of their equations."""
    gradual = LayerSkipSettings(p_max=0.2, e_scale=1.0, curriculum="gradual", dropout_over_time="rising")
    assert gradual.weights(4, 0, 16) == {3: 1.0}
    assert gradual.weights(4, 2, 16) == pytest.approx({2: 3 / 9, 3: 6 / 9})
    assert gradual.weights(4, 15, 16) == pytest.approx({1: 0.1, 2: 0.3, 3: 0.6})
    assert gradual.probabilities(4, 0, 16) == [0.0] * 4
    assert gradual.probabilities(4, 15, 16) == pytest.approx([0, 0.05198421, 0.11748021, 0.2])
    rotational = LayerSkipSettings(e_scale=0.2)
    assert list(rotational.weights(32, 3, 100)) == [3, 11, 19, 27, 31]
    assert rotational.probabilities(32, 0, 100)[31] == pytest.approx(0.1)


def test_the_loss_of_a_step(tiny_model: Any, trainer_of: Any) -> None:
    """As written out: each row alone, through the layers it keeps, each exit's loss by the model's norm and head."""
    model = tiny_model("llama").train()
    trainer = trainer_of(model, max_steps=1)
    batch = default_data_collator([trainer.train_dataset[row] for row in range(4)])
    with trainer.prepared():
        found = trainer.compute_loss(model, dict(batch), num_items_in_batch=(batch["labels"][:, 1:] != -100).sum())

    skips = draw_skips(HEAVY.probabilities(NUM_LAYERS, 0, 0), range(4), seed=3, step=0)
    assert skips.any()
    weights = HEAVY.weights(NUM_LAYERS, 0, 0)
    assert list(weights) == [2, 4, 5]
    sums = dict.fromkeys(weights, torch.zeros(()))
    for row in range(4):
        for layer in weights:
            sums[layer] = sums[layer] + exit_loss_of_a_row(model, batch, row, layer, skips[row])
    tokens = (batch["labels"][:, 1:] != -100).sum()
    expected = sum(weights[layer] * total for layer, total in sums.items()) / tokens
    torch.testing.assert_close(found, expected)
    assert float(trainer.extra_losses["loss_exit_6"]) == pytest.approx(float((sums[5] / tokens).detach()), rel=1e-5)
    assert set(trainer.extra_losses) == {"loss_exit_6"}  # of exits 2 and 4, layers 1 and 3, none is enabled


def exit_loss_of_a_row(model: Any, batch: Any, row: int, layer: int, skipped: Any) -> Tensor:
    kept = [index for index in range(layer + 1) if not skipped[index]]
    apply(model, DepthPlan.of_layers(kept, NUM_LAYERS))
    logits = model(batch["input_ids"][row : row + 1], use_cache=False).logits
    restore(model)
    return cross_entropy(logits[0, :-1], batch["labels"][row, 1:], reduction="sum")


def test_held_out_loss_is_the_last_layers(tiny_model: Any, trainer_of: Any) -> None:
    """Without dropout, and with the figures of the exits watched beside it."""
    model = tiny_model("llama")
    trainer = trainer_of(model, held_out=rows(6), per_device_eval_batch_size=4)
    found = trainer.evaluate()
    batch = default_data_collator(rows(6))
    with torch.no_grad():
        output = model(batch["input_ids"], output_hidden_states=True, use_cache=False)
    targets = batch["labels"][:, 1:].flatten()
    expected = cross_entropy(output.logits[:, :-1].flatten(0, 1), targets)
    assert found["eval_loss"] == pytest.approx(float(expected), rel=1e-5)
    from truedepth.families import family_of

    exits = {layers: to_logits(model, family_of(model.config), output.hidden_states[layers]) for layers in (2, 4)}
    for layers, logits in exits.items():
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), targets)
        assert found[f"eval_loss_exit_{layers}"] == pytest.approx(float(loss), rel=1e-5)
        same = (logits.argmax(-1) == output.logits.argmax(-1))[:, :-1].flatten()[targets != -100]
        assert found[f"eval_agreement_exit_{layers}"] == pytest.approx(float(same.float().mean()))


def test_figures_of_training(tiny_model: Any, trainer_of: Any) -> None:
    """Of the exits watched, in the steps in which they have their turn."""
    settings = LayerSkipSettings(curriculum="rotational", every=2, watch=(2,))
    trainer = trainer_of(tiny_model("llama"), settings)
    trainer.train()
    assert [
        [name for name in ("loss_exit_2", "agreement_exit_2", "loss_exit_6") if name in step]
        for step in logged(trainer)[:4]
    ] == [["loss_exit_6"], ["loss_exit_2", "agreement_exit_2", "loss_exit_6"]] * 2


def test_exits_learn(tiny_model: Any, trainer_of: Any) -> None:
    """On few rows all exits improve, and the last layer too."""
    settings = LayerSkipSettings(p_max=0.1, e_scale=1.0, curriculum="gradual", watch=(2, 4))
    trainer = trainer_of(
        tiny_model("llama"), settings, held_out=rows(16), max_steps=80, learning_rate=1e-2, logging_steps=50
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    for name in ("eval_loss", "eval_loss_exit_2", "eval_loss_exit_4"):
        assert after[name] < 0.5 * before[name]
    assert after["eval_agreement_exit_4"] > 0.8


# What it composes with


def state(model: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_close(first: dict[str, Tensor], second: dict[str, Tensor], **tolerance: Any) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def trained(trainer: LayerSkipTrainer) -> dict[str, Tensor]:
    trainer.train()
    return state(trainer.model)


def test_every_family(family_name: str, tiny_model: Any, trainer_of: Any) -> None:
    """Trains, finite; and the model is an ordinary one again."""
    model = tiny_model(family_name)
    before, kinds = state(model), [type(layer) for layer in model.model.layers]
    after = trained(trainer_of(model, max_steps=2, logging_steps=1))
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(after[name], before[name]) for name in before if "layers.5" in name)
    assert [type(layer) for layer in model.model.layers] == kinds


def test_accumulation_changes_nothing(tiny_model: Any, trainer_of: Any) -> None:
    """The rows of a step skip the same layers however they are divided, and count alike."""
    # By SGD: Adam divides small gradients by their size, and so makes much of how they were rounded.
    arguments = {"optim": "sgd", "learning_rate": 0.1}
    divided = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    before = state(tiny_model("llama"))
    whole = trained(trainer_of(tiny_model("llama"), **arguments))
    parts = trained(trainer_of(tiny_model("llama"), **arguments, **divided))
    assert_close(parts, whole, rtol=1e-4, atol=1e-5)
    assert max(float((whole[name] - value).abs().max()) for name, value in before.items()) > 1e-2


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`")
@pytest.mark.parametrize("name", ["llama", "gemma3", "mixtral"])
def test_gradient_checkpointing_changes_nothing(name: str, tiny_model: Any, trainer_of: Any) -> None:
    plain = trained(trainer_of(tiny_model(name), max_steps=2))
    checkpointed = trained(trainer_of(tiny_model(name), max_steps=2, gradient_checkpointing=True))
    assert_close(checkpointed, plain, rtol=1e-4, atol=1e-5)


def test_bfloat16_autocast(tiny_model: Any, trainer_of: Any) -> None:
    trainer = trainer_of(tiny_model("llama"), bf16=True, max_steps=1, lr_scheduler_type="constant")
    trainer.train()
    exact = trainer_of(tiny_model("llama"), max_steps=1, output_dir=str(trainer.args.output_dir) + "-exact")
    exact.train()
    assert logged(trainer)[0]["loss"] == pytest.approx(logged(exact)[0]["loss"], rel=0.02)
    assert all(value.dtype == torch.float32 for value in state(trainer.model).values())


def test_lora(tiny_model: Any, trainer_of: Any) -> None:
    """Only the adapters are trained, and they load onto the model as it came."""
    from peft import LoraConfig, PeftModel, get_peft_model

    model = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj", "down_proj"]))
    before = state(model)
    trainer = trainer_of(model)
    after = trained(trainer)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    folder = Path(str(trainer.args.output_dir)) / "adapter"
    model.save_pretrained(folder)
    loaded = PeftModel.from_pretrained(tiny_model("llama"), folder)
    ids = rows(2)[0]["input_ids"][None]
    torch.testing.assert_close(loaded(ids).logits, model.eval()(ids).logits)


def test_interrupted_and_resumed(tiny_model: Any, trainer_of: Any) -> None:
    """Bit for bit the same, with dropout and curriculum where they were."""
    whole = trainer_of(tiny_model("llama"), save_strategy="steps", save_steps=2)
    expected = trained(whole)
    folder = Path(str(whole.args.output_dir)) / "checkpoint-2"
    figures = logged(whole)
    resumed = trainer_of(tiny_model("llama"), save_strategy="steps", save_steps=2)
    resumed.train(resume_from_checkpoint=str(folder))
    found = state(resumed.model)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    losses = [step["loss"] for step in figures if "loss" in step]
    assert [step["loss"] for step in logged(resumed) if "loss" in step] == losses


# Bad settings


def test_refusals(tiny_model: Any, trainer_of: Any) -> None:
    for watch in ((0,), (6,), (7,)):
        with pytest.raises(UsageError, match="the model has 6"):
            trainer_of(tiny_model("llama"), LayerSkipSettings(watch=watch))
    for wrong in ({"p_max": 1.0}, {"p_max": -0.1}, {"e_scale": -1.0}, {"curriculum": "gradual", "every": 2}, {"r": 8}):
        with pytest.raises(ValidationError):
            LayerSkipSettings(**wrong)


def test_default_exits_to_watch() -> None:
    assert LayerSkipSettings().watched(24) == (6, 12, 18)
    assert LayerSkipSettings().watched(30) == (7, 15, 22)
    assert LayerSkipSettings().watched(2) == (1,)
    assert LayerSkipSettings().watched(1) == ()
    assert np.allclose(LayerSkipSettings(p_max=0).probabilities(4, 1, 2), 0)
