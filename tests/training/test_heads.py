"""Training heads by a recipe: from prompts to files that draft."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import truedepth
from truedepth.engine.drafts.heads.draft_head import load_head
from truedepth.engine.drafts.heads.eagle_head import EagleHead
from truedepth.engine.drafts.heads.exit_head import ExitHead
from truedepth.errors import OutputError, TrainingError, UsageError
from truedepth.training.heads.recipe import KIND, ExitHeadRecipe
from truedepth.training.heads.trainer import ExitHeadTrainer
from truedepth.training.run import train
from truedepth.training.trainer.pace import Snapshot

RECIPES = Path(__file__).parents[2] / "recipes"

pytestmark = pytest.mark.usefixtures("quick_ends")


@pytest.fixture
def settings(tiny_folder: Path, write_lines: Callable[..., Path]) -> Callable[..., dict[str, Any]]:
    """`settings("eagle", **changed)`: the fields of a recipe for a few steps on the tiny model."""

    def make(kind: str, **changed: Any) -> dict[str, Any]:
        prompts = write_lines([{"prompt": f"{number}+{number}"} for number in range(12)])
        answer = {"source": {"file": str(prompts), "text_field": "prompt"}, "new_tokens": 24}
        own = {"depths": [2, 4, 6], "rank": 2} if kind == "eagle" else {"exit": 3}
        return {
            "kind": "exit-head",
            "model": {"name": str(tiny_folder), "device": "cpu"},
            "head": {"kind": kind, "vocabulary": 120, **own},
            "data": {
                "train": {"answer": [answer], "tokens": 300},
                "held_out": {"sums": {"answer": [answer], "tokens": 60}},
                "length": 48,
            },
            "states": {"batch": 4},
            "positions": 2,
            "steps": 6,
            "learning_rate": 3e-3,
            "logging": {"log_every": 2, "evaluate_every": 3, "save_every": 4, "tensorboard": False},
            **changed,
        }

    return make


@pytest.mark.parametrize("kind", ["eagle", "exit"])
def test_a_recipe_makes_a_head_that_drafts(kind: str, settings: Any, tmp_path: Path) -> None:
    recipe = ExitHeadRecipe(**settings(kind))
    results = train(KIND, recipe, tmp_path / "run")
    assert results is not None
    losses = [loss for _, loss in results.series("loss_position_1")]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert [step for step, _ in results.series("eval_agreement_position_1")] == [0, 3, 6]
    assert bool(results.series("loss_position_2")) == (kind == "eagle")
    assert (results.train.tokens, results.held_out and results.held_out.tokens) > (300, 60)

    loaded = truedepth.load(str(recipe.model.name))
    head = load_head(tmp_path / "run" / "head", loaded.model)
    assert isinstance(head, EagleHead if kind == "eagle" else ExitHead)
    assert len(head.ids) == 120
    assert "items.jsonl (answered)" in head.text
    assert set(head.agreement) == {"sums"}
    assert results.product.figures["agreement on sums, position 1"] == head.agreement["sums"][0]
    weights = load_file(tmp_path / "run" / "head" / "head.safetensors")
    assert weights["extra_layers.0.mlp.up_proj.weight"].dtype == torch.bfloat16
    plain = truedepth.generate(loaded, "5+5", max_new_tokens=20)
    drafted = truedepth.generate(loaded, "5+5", max_new_tokens=20, draft=head, num_speculative_tokens=3)
    assert drafted.token_ids == plain.token_ids
    assert drafted.drafted


def test_an_interrupted_training_goes_on(settings: Any, tmp_path: Path) -> None:
    recipe = ExitHeadRecipe(**settings("eagle"))
    train(KIND, recipe, tmp_path / "straight")

    def interrupt(snapshot: Snapshot) -> None:
        if snapshot.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(KIND, recipe, tmp_path / "broken", on_snapshot=interrupt)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "broken" / "states").rglob("*.safetensors")}
    assert made
    train(KIND, recipe, tmp_path / "broken", resume=True)
    assert {path: path.stat().st_mtime_ns for path in made} == made, "states are not made again"
    weights = [load_file(tmp_path / name / "head" / "head.safetensors") for name in ("straight", "broken")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_states_serve_several_heads(settings: Any, tmp_path: Path) -> None:
    states = {"folder": str(tmp_path / "states"), "depths": [3], "batch": 4}
    train(KIND, ExitHeadRecipe(**settings("eagle", states=states, steps=1)), tmp_path / "one")
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "states").rglob("*.safetensors")}
    train(KIND, ExitHeadRecipe(**settings("exit", states=states, steps=1)), tmp_path / "two")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "states").rglob("*.safetensors")} == made
    with pytest.raises(TrainingError, match="holds states for something else: none at depth 5"):
        recipe = settings("exit", states=states, steps=1, head={"kind": "exit", "exit": 5, "vocabulary": 120})
        train(KIND, ExitHeadRecipe(**recipe), tmp_path / "three")


def test_a_loss_that_is_not_a_number(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = ExitHeadTrainer.compute_loss

    def broken(self: ExitHeadTrainer, *given: Any, **named: Any) -> Any:
        loss = honest(self, *given, **named)
        return loss * (torch.nan if self.state.global_step == 4 else 1)

    monkeypatch.setattr(ExitHeadTrainer, "compute_loss", broken)
    with pytest.raises(TrainingError, match=r"the loss is nan in step 5.*checkpoint-4, is as it was"):
        train(KIND, ExitHeadRecipe(**settings("eagle")), tmp_path / "run")
    assert not (tmp_path / "run" / "head").exists()


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"head": {"kind": "eagle", "vocabulary": 2}}, UsageError, "the size of the draft vocabulary is 2"),
        ({"head": {"kind": "eagle", "vocabulary": 120, "depths": [7]}}, UsageError, "the model's depths are 1 to 6"),
        ({"head": {"kind": "exit", "vocabulary": 120, "exit": 7}}, UsageError, "states are wanted at depth 7"),
        ({"head": {"kind": "eagle", "vocabulary": 120, "depths": [6, 2]}}, UsageError, "give at least one, rising"),
    ],
)
def test_what_cannot_be(changed: Any, error: Any, message: str, settings: Any, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        train(KIND, ExitHeadRecipe(**settings("eagle", **changed)), tmp_path / "run")


def test_resuming_with_another_recipe(settings: Any, tmp_path: Path) -> None:
    train(KIND, ExitHeadRecipe(**settings("exit", steps=1)), tmp_path / "run")
    with pytest.raises(OutputError, match="with another recipe"):
        train(KIND, ExitHeadRecipe(**settings("exit", steps=2)), tmp_path / "run", resume=True)


@pytest.mark.parametrize("name", ["exit-head-eagle.yaml", "exit-head-exit.yaml"])
def test_the_recipes_that_come_along(name: str) -> None:
    recipe = ExitHeadRecipe.load(RECIPES / name)
    assert recipe.model.name == "smollm2-135m"
    assert json.dumps(recipe.to_dict())
