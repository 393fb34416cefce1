"""A recipe from its file to the report, and how an interrupted one goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import truedepth
from truedepth.errors import OutputError, TextError, UsageError
from truedepth.training.kinds import KINDS, find_kind
from truedepth.training.recipe import ModelSource, TrainingRecipe
from truedepth.training.results import TRAINING_FILE, TrainingResults
from truedepth.training.run import train
from truedepth.training.trainer.pace import Snapshot

RECIPES = Path(__file__).parents[2] / "recipes"

pytestmark = pytest.mark.usefixtures("quick_ends")


@pytest.fixture
def settings(tiny_folder: Path, write_lines: Callable[..., Path]) -> dict[str, Any]:
    """The fields of a recipe for a few steps on the tiny model."""
    lines = [{"prompt": f"{number}+{number}=", "response": str(2 * number)} for number in range(60)]
    source = {"file": str(write_lines(lines)), "format": "prompt-response"}
    return {
        "kind": "plain",
        "model": {"name": str(tiny_folder), "device": "cpu"},
        "data": {"train": [{**source, "limit": 50}], "held_out": [{**source, "skip": 50}], "length": 32},
        "steps": 6,
        "batch": 4,
        "micro_batch": 2,
        "learning_rate": 1e-3,
        "logging": {"log_every": 2, "evaluate_every": 3, "save_every": 4},
    }


def without_clock(results: TrainingResults) -> list[Any]:
    return [
        (record.step, {name: value for name, value in record.values.items() if name != "tokens_per_second"})
        for record in results.history
    ]


class TestRun:
    def test_everything_that_is_written(self, plain_kind: Any, settings: dict[str, Any], tmp_path: Path) -> None:
        folder = tmp_path / "run"
        results = train(plain_kind, plain_kind.recipe(**settings), folder)
        assert results is not None
        written = {path.name for path in folder.iterdir()}
        assert written == {
            "checkpoint-6",
            "model",
            "recipe.yaml",
            "tensorboard",
            "training-results.json",
            "training.jsonl",
        }
        assert TrainingResults.load(folder / TRAINING_FILE) == results
        assert plain_kind.recipe.load(folder / "recipe.yaml") == plain_kind.recipe(**settings)
        assert (results.steps, results.train.items, results.held_out and results.held_out.items) == (6, 50, 10)
        assert results.trained_parameters == results.model.parameters
        assert [step for step, _ in results.series("loss")] == [2, 4, 6]
        assert [step for step, _ in results.series("eval_loss_exit_4")] == [0, 3, 6]
        assert all(0 <= value <= 1 for _, value in results.series("eval_agreement_exit_2"))
        recipe = (folder / "recipe.yaml").stat().st_mode
        assert {path.stat().st_mode for path in folder.rglob("*") if path.is_file()} == {recipe}

        events = EventAccumulator(str(folder / "tensorboard")).Reload()
        assert [event.step for event in events.Scalars("train/loss")] == [2, 4, 6]
        assert [event.step for event in events.Scalars("eval/loss_exit_2")] == [0, 3, 6]

    def test_the_product_is_a_checkpoint_like_the_one_before(
        self, plain_kind: Any, settings: dict[str, Any], tmp_path: Path
    ) -> None:
        train(plain_kind, plain_kind.recipe(**settings), tmp_path / "run")
        before, after = truedepth.load(settings["model"]["name"]), truedepth.load(str(tmp_path / "run" / "model"))
        assert not list((tmp_path / "run" / "model").glob("*.bin"))
        assert after.model.config.use_cache
        assert after.tokenizer.get_vocab() == before.tokenizer.get_vocab()
        weights = before.model.state_dict()
        assert not any(torch.equal(value, weights[name]) for name, value in after.model.named_parameters())

    @pytest.mark.parametrize("step", [2, 3, 6])
    def test_an_interrupted_run_goes_on(
        self, step: int, plain_kind: Any, settings: dict[str, Any], tmp_path: Path
    ) -> None:
        """The same figures, those of held-out text too, each once; the last step included."""
        recipe = plain_kind.recipe(**settings)
        told: list[Snapshot] = []

        def interrupt(snapshot: Snapshot) -> None:
            if snapshot.step == step and not told:
                told.append(snapshot)
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            train(plain_kind, recipe, tmp_path / "broken", on_snapshot=interrupt)
        assert not (tmp_path / "broken" / "model").exists()
        resumed = train(plain_kind, recipe, tmp_path / "broken", resume=True)
        straight = train(plain_kind, recipe, tmp_path / "straight")
        assert resumed is not None and straight is not None
        assert without_clock(resumed) == without_clock(straight)
        events = EventAccumulator(str(tmp_path / "broken" / "tensorboard")).Reload()
        assert [event.step for event in events.Scalars("train/loss")] == [2, 4, 6]
        weights = truedepth.load(str(tmp_path / "straight" / "model")).model.state_dict()
        for name, value in truedepth.load(str(tmp_path / "broken" / "model")).model.state_dict().items():
            assert torch.equal(value, weights[name]), name

    def test_a_run_that_crashed_goes_on_from_its_checkpoint(
        self, plain_kind: Any, settings: dict[str, Any], tmp_path: Path
    ) -> None:
        """What had been logged after it is not there twice, in TensorBoard's log either."""
        recipe = plain_kind.recipe(**{**settings, "logging": {"log_every": 1, "evaluate_every": 3, "save_every": 3}})

        def crash(snapshot: Snapshot) -> None:
            if snapshot.step == 6:
                raise RuntimeError("crash")

        with pytest.raises(RuntimeError, match="crash"):
            train(plain_kind, recipe, tmp_path / "broken", on_snapshot=crash)
        resumed = train(plain_kind, recipe, tmp_path / "broken", resume=True)
        straight = train(plain_kind, recipe, tmp_path / "straight")
        assert resumed is not None and straight is not None
        assert without_clock(resumed) == without_clock(straight)
        events = EventAccumulator(str(tmp_path / "broken" / "tensorboard")).Reload()
        assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]

    def test_a_finished_run_that_is_resumed_stays_as_it_is(
        self, plain_kind: Any, settings: dict[str, Any], tmp_path: Path
    ) -> None:
        recipe = plain_kind.recipe(**settings)
        first = train(plain_kind, recipe, tmp_path / "run")
        again = train(plain_kind, recipe, tmp_path / "run", resume=True)
        assert first is not None and again is not None
        assert again.history == first.history
        assert (again.steps, again.product) == (first.steps, first.product)

    def test_a_run_without_checkpoint_starts_anew(
        self, plain_kind: Any, settings: dict[str, Any], tmp_path: Path
    ) -> None:
        folder = tmp_path / "run"
        folder.mkdir()
        plain_kind.recipe(**settings).save(folder / "recipe.yaml")
        assert train(plain_kind, plain_kind.recipe(**settings), folder, resume=True)

    def test_what_changed_in_a_recipe_is_named_by_its_field(
        self, plain_kind: Any, settings: dict[str, Any], tmp_path: Path
    ) -> None:
        train(plain_kind, plain_kind.recipe(**settings), tmp_path / "run")
        data = settings["data"]
        other = plain_kind.recipe(**{**settings, "data": {**data, "train": [{**data["train"][0], "limit": 3}]}})
        with pytest.raises(OutputError, match=r"another recipe: data\.train\[0\]\.limit was 50 and is 3; "):
            train(plain_kind, other, tmp_path / "run", resume=True)

    def test_another_recipe_is_not_resumed(self, plain_kind: Any, settings: dict[str, Any], tmp_path: Path) -> None:
        train(plain_kind, plain_kind.recipe(**settings), tmp_path / "run")
        other = plain_kind.recipe(**{**settings, "learning_rate": 0.5})
        with pytest.raises(
            OutputError, match=r"another recipe: learning_rate was 0.001 and is 0.5; resume with .*recipe.yaml"
        ):
            train(plain_kind, other, tmp_path / "run", resume=True)
        with pytest.raises(OutputError, match="is not empty"):
            train(plain_kind, other, tmp_path / "run")

    def test_without_held_out_text(self, plain_kind: Any, settings: dict[str, Any], tmp_path: Path) -> None:
        settings["data"].pop("held_out")
        settings |= {"steps": None, "epochs": 2, "logging": {"log_every": 1, "tensorboard": False}}
        results = train(plain_kind, plain_kind.recipe(**settings), tmp_path / "run")
        assert results is not None and results.held_out is None
        assert not (tmp_path / "run" / "tensorboard").exists()
        assert results.steps == 2 * (results.train.rows // 4)
        assert not any(name.startswith("eval") for record in results.history for name in record.values)

    def test_an_item_that_is_too_long(
        self, plain_kind: Any, settings: dict[str, Any], write_lines: Callable[..., Path], tmp_path: Path
    ) -> None:
        file = write_lines([{"prompt": "a", "response": "b"}, {"prompt": "a", "response": "b" * 40}], "long.jsonl")
        settings["data"]["train"][0]["file"] = str(file)
        with pytest.raises(TextError, match=r"long.jsonl, line 2 has 42 tokens, and a row has 32"):
            train(plain_kind, plain_kind.recipe(**settings), tmp_path / "run")
        assert not list((tmp_path / "run").iterdir())  # so that the corrected recipe may use it

    def test_no_room_for_the_model(
        self, plain_kind: Any, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is there whole or not at all."""
        recipe = plain_kind.recipe(**settings)

        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", full)
            patch.setattr("truedepth.training.trainer.depth_trainer.DepthTrainer._save_checkpoint", lambda *_: None)
            with pytest.raises(OutputError, match=r"cannot write .*model: the disk is full"):
                train(plain_kind, recipe, tmp_path / "run")
        assert not (tmp_path / "run" / "model").exists() and not (tmp_path / "run" / ".model.part").exists()


class TestNewModels:
    CONFIG = {  # noqa: RUF012
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
    }

    def test_with_a_tokenizer_of_the_text(self, plain_kind: Any, settings: dict[str, Any], tmp_path: Path) -> None:
        settings["model"] = {"scratch": {"config": self.CONFIG, "vocabulary": 280}, "device": "cpu"}
        first = train(plain_kind, plain_kind.recipe(**settings), tmp_path / "first")
        second = train(plain_kind, plain_kind.recipe(**settings), tmp_path / "second")
        assert first is not None and second is not None
        assert without_clock(first) == without_clock(second)
        loaded = truedepth.load(str(tmp_path / "first" / "model"))
        assert loaded.model.config.vocab_size == len(loaded.tokenizer) <= 280
        assert loaded.tokenizer.decode(loaded.tokenizer("7+7=14 grün").input_ids) == "7+7=14 grün"
        assert loaded.model.config.eos_token_id == loaded.tokenizer.eos_token_id == 1

    def test_with_a_tokenizer_that_there_is(
        self, plain_kind: Any, settings: dict[str, Any], tiny_folder: Path, tmp_path: Path
    ) -> None:
        settings["model"] = {"scratch": {"config": self.CONFIG, "tokenizer": str(tiny_folder)}, "device": "cpu"}
        results = train(plain_kind, plain_kind.recipe(**settings), tmp_path / "run")
        assert results is not None and results.model.num_layers == 4
        assert results.series("eval_loss")[0][1] == pytest.approx(2 * 5.56, abs=0.3)  # ln 259, and half of it twice

    @pytest.mark.parametrize(
        "change",
        [{"model_type": "lama"}, {"hidden_size": "wide"}, {"num_attention_heads": 0}, {"num_hidden_layers": 10**9}],
    )
    def test_a_configuration_that_makes_no_model(
        self, change: dict[str, Any], plain_kind: Any, settings: dict[str, Any], tmp_path: Path
    ) -> None:
        settings["model"] = {"scratch": {"config": {**self.CONFIG, **change}, "vocabulary": 280}, "device": "cpu"}
        with pytest.raises(
            UsageError, match=r"the 'config' of the new model makes no model|the new model cannot be: .*'config'"
        ):
            train(plain_kind, plain_kind.recipe(**settings), tmp_path / "run")


class TestRecipes:
    @pytest.mark.parametrize(
        ("change", "what"),
        [
            ({"stpes": 3}, "unknown field 'stpes'; the fields are kind, model, data, steps"),
            (
                {"data": {"train": [{"file": "a"}], "lenght": 3}},
                r"'data.lenght'; the fields are train, held_out, length",
            ),
            ({"data": {"train": [{"fiel": "a"}]}}, r"'data.train.0.fiel'; the fields are file, dataset"),
            ({"data": {"train": []}}, "'data.train'"),
            ({"epochs": 3}, "exactly one of 'steps' and 'epochs'"),
            ({"model": {}}, "exactly one of 'name' and 'scratch'"),
            ({"kind": "recover"}, "'kind' is 'recover'; input should be 'plain'"),
            ({"batch": 0}, "'batch' is 0"),
            ({"model": {"scratch": {"config": {}, "vocabulary": 300}}}, "'config' needs a 'model_type'"),
            *[({"learning_rate": value}, "'learning_rate' is") for value in (float("nan"), float("inf"))],
            *[({"steps": None, "epochs": value}, "'epochs' is") for value in (float("inf"), 1e300)],
            ({"seed": 2**40}, "'seed' is"),
            ({"steps": 10**30}, "'steps' is"),
            ({"data": {"train": [{"file": "a"}], "length": 10**12}}, "'data.length' is"),
            ({"model": {"scratch": {"config": {"model_type": "llama"}, "vocabulary": 10**12}}}, "vocabulary' is"),
        ],
    )
    def test_mistakes_are_named(
        self, change: dict[str, Any], what: str, plain_kind: Any, settings: dict[str, Any], tmp_path: Path
    ) -> None:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**settings, **change}))
        with pytest.raises(UsageError, match=what):
            plain_kind.recipe.load(path)

    def test_a_batch_that_does_not_divide(self, plain_kind: Any, settings: dict[str, Any], tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="a batch of 4 rows does not divide into micro-batches of 3 on 1 rank"):
            train(plain_kind, plain_kind.recipe(**{**settings, "micro_batch": 3}), tmp_path / "run")

    def test_packages_that_are_missing(
        self, plain_kind: Any, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("truedepth.training.arguments.find_spec", lambda name: None)
        with pytest.raises(UsageError, match=r"needs accelerate and tensorboard; .*pip install accelerate tensorboard"):
            train(plain_kind, plain_kind.recipe(**settings), tmp_path / "run")

    def test_numbers_as_people_write_them(self, settings: dict[str, Any], plain_kind: Any, tmp_path: Path) -> None:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(settings).replace("learning_rate: 0.001", "learning_rate: 3e-5"))
        assert plain_kind.recipe.load(path).learning_rate == 3e-5

    def test_every_recipe_that_comes_along_loads(self) -> None:
        for path in RECIPES.glob("*.yaml"):
            kind = find_kind(yaml.safe_load(path.read_text(encoding="utf-8"))["kind"])
            assert isinstance(kind.recipe.load(path), TrainingRecipe)

    def test_every_kind_is_found(self) -> None:
        for name in KINDS:
            assert find_kind(name).recipe.model_fields["kind"].default == name
        with pytest.raises(UsageError, match="there is no training named 'layer'"):
            find_kind("layer")

    def test_models(self) -> None:
        assert ModelSource(name="a").dtype == "float32"
