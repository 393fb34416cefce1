"""The base of our trainers: its losses and figures, and what happens when something goes wrong."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import Trainer

from truedepth.errors import OutputError, TextError, TrainingError
from truedepth.training.data.rows import IGNORED, TokenRows
from truedepth.training.trainer.checkpoints import last_checkpoint
from truedepth.training.trainer.depth_trainer import DepthTrainer
from truedepth.training.trainer.figures import FIGURES_FILE, Figures, exit_name, exit_of, read_figures
from truedepth.training.trainer.pace import Snapshot

Start = Callable[..., DepthTrainer]

UNREPEATED = ("tokens_per_second",)
"""Figures that depend on the clock."""


def logged(trainer: DepthTrainer) -> list[tuple[int, dict[str, float]]]:
    """Steps and figures in `training.jsonl`, but for those of the clock."""
    found = read_figures(Path(str(trainer.args.output_dir)) / FIGURES_FILE)
    return [
        (figures.step, {name: value for name, value in figures.values.items() if name not in UNREPEATED})
        for figures in found
    ]


@torch.no_grad()
def mean_loss(model: Any, rows: TokenRows, indexes: list[int]) -> float:
    """The mean cross-entropy over all labels of rows, computed one row at a time."""
    total, count = 0.0, 0
    for index in indexes:
        row = rows[index]
        logits = model(row["input_ids"][None], position_ids=row["position_ids"][None], use_cache=False).logits[0]
        total += float(cross_entropy(logits[:-1], row["labels"][1:], reduction="sum", ignore_index=IGNORED))
        count += int((row["labels"][1:] != IGNORED).sum())
    return total / count


class TestLosses:
    @pytest.mark.parametrize("accumulation", [1, 2, 4])
    def test_a_step_is_the_mean_over_its_tokens(self, accumulation: int, start: Start, tiny_model: Any) -> None:
        """However many micro-batches it has."""
        model = tiny_model("llama")
        trainer = start(
            model=model,
            max_steps=1,
            per_device_train_batch_size=4 // accumulation,
            gradient_accumulation_steps=accumulation,
        )
        order = list(trainer._get_train_sampler())[:4]
        expected = mean_loss(tiny_model("llama"), trainer.train_dataset, order)  # type: ignore[arg-type]
        trainer.train()
        assert logged(trainer)[0][1]["loss"] == pytest.approx(expected, rel=1e-5)

    def test_held_out_loss_does_not_depend_on_batches(self, start: Start, tiny_model: Any) -> None:
        found = [
            start(str(size), model=tiny_model("llama"), per_device_eval_batch_size=size).evaluate()["eval_loss"]
            for size in (1, 2, 8)
        ]
        rows = start().eval_dataset
        expected = mean_loss(tiny_model("llama"), rows, list(range(len(rows))))  # type: ignore[arg-type]
        assert found == pytest.approx([expected] * 3, rel=1e-5)

    def test_judging_changes_nothing(self, start: Start) -> None:
        """The numbers that dropout draws are the same, however often held-out text is looked at."""
        never, often = start("never"), start("often", eval_strategy="steps", eval_steps=2)
        never.train()
        often.train()
        assert logged(never) == [(step, values) for step, values in logged(often) if "loss" in values]

    def test_figures_of_exits(self, start: Start, exit_trainer: Any) -> None:
        """Each is the mean over the steps that had it, and held-out text has them too."""
        each = start("each", trainer=exit_trainer, max_steps=6, gradient_accumulation_steps=2, eval_strategy="epoch")
        each.train()
        third = start("third", trainer=exit_trainer, max_steps=6, gradient_accumulation_steps=2, logging_steps=3)
        third.train()
        steps = [values for _, values in logged(each) if "loss" in values]
        assert [exit_of(name) for values in steps for name in values if exit_of(name)] == [
            ("loss", 2),
            ("loss", 4),
        ] * 3
        summary = logged(third)[0][1]
        assert summary["loss_exit_2"] == pytest.approx((steps[0]["loss_exit_2"] + steps[2]["loss_exit_2"]) / 2)
        assert summary["loss_exit_4"] == pytest.approx(steps[1]["loss_exit_4"])
        assert summary["loss"] == pytest.approx(sum(values["loss"] for values in steps[:3]) / 3)
        held_out = next(values for _, values in logged(each) if "eval_loss" in values)
        assert 3 < held_out["eval_loss_exit_2"] < 6 and 3 < held_out["eval_loss_exit_4"] < 6

    def test_it_learns(self, start: Start, random_items: Any) -> None:
        trainer = start(
            items=random_items(4, documents=True), max_steps=60, learning_rate=1e-2, per_device_train_batch_size=1
        )
        trainer.train()
        losses = [values["loss"] for _, values in logged(trainer)]
        assert sum(losses[-5:]) < 0.2 * sum(losses[:5])

    def test_without_labels_micro_batches_weigh_the_same(self, start: Start) -> None:
        trainer = start()
        trainer.current_gradient_accumulation_steps = 2
        trainer.model.train()  # type: ignore[union-attr]
        assert float(trainer.per_token(torch.tensor(6.0), None, 3)) == 1
        trainer.model.eval()  # type: ignore[union-attr]
        assert float(trainer.per_token(torch.tensor(6.0), None, 3)) == 2

    def test_too_few_rows(self, start: Start) -> None:
        with pytest.raises(TextError, match="fills 14 rows, and a step takes 16"):
            start(per_device_train_batch_size=8, gradient_accumulation_steps=2).train()


class TestNotANumber:
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_loss(self, value: float, start: Start) -> None:
        """Ends with step and items; the checkpoint before is whole and can be resumed from."""

        class Broken(DepthTrainer):
            broken = True

            def compute_loss(self, *args: Any, **options: Any) -> Any:
                loss = super().compute_loss(*args, **options)
                return loss * value if self.broken and self.state.global_step == 5 and self.micro_batch == 1 else loss

        settings = {"trainer": Broken, "gradient_accumulation_steps": 2, "save_steps": 2}
        trainer = start(**settings)
        with pytest.raises(TrainingError) as raised:
            trainer.train()
        order = [row for epoch in range(2) for row in _order(trainer, epoch)][5 * 4 + 2 : 5 * 4 + 4]
        where = " | ".join(trainer.train_dataset.where(row) for row in order)  # type: ignore[union-attr]
        message = str(raised.value)
        assert f"the loss is {value} in step 6, micro-batch 2, made of {where};" in message
        assert "checkpoint-4, is as it was" in message
        assert [step for step, _ in logged(trainer)] == [1, 2, 3, 4, 5]

        Broken.broken = False
        start(**settings).train(True)
        straight = start("straight", **settings)
        straight.train()
        assert logged(trainer) == logged(straight)

    def test_a_gradient(self, start: Start) -> None:
        """Of a loss that is a number; the weights stay as they were."""

        class Infinite(torch.autograd.Function):
            @staticmethod
            def forward(_: Any, value: Any) -> Any:
                return value.clone()

            @staticmethod
            def backward(_: Any, gradient: Any) -> Any:
                return gradient * math.inf

        class Broken(DepthTrainer):
            def compute_loss(self, *args: Any, **options: Any) -> Any:
                return Infinite.apply(super().compute_loss(*args, **options))

        trainer = start(trainer=Broken)
        before = {name: value.clone() for name, value in trainer.model.state_dict().items()}  # type: ignore[union-attr]
        with pytest.raises(TrainingError, match=r"the gradient is (nan|inf) in step 1, .*items.jsonl, line"):
            trainer.train()
        after = trainer.model.state_dict()  # type: ignore[union-attr]
        assert all(torch.equal(value, after[name]) for name, value in before.items())


def _order(trainer: DepthTrainer, epoch: int) -> list[int]:
    sampler = trainer._get_train_sampler()
    sampler.epoch = epoch
    return list(sampler)


class TestCheckpoints:
    def failing(self, monkeypatch: pytest.MonkeyPatch, error: Exception, where: str, step: int) -> None:
        """Let saving fail in the checkpoint of a step."""
        original = getattr(Trainer, where)

        def save(own: Any, *args: Any, **options: Any) -> Any:
            if own.state.global_step == step:
                raise error
            return original(own, *args, **options)

        monkeypatch.setattr(Trainer, where, save)

    @pytest.mark.parametrize(
        ("error", "what"),
        [
            (OSError(28, "No space left on device"), "the disk is full"),
            (RuntimeError("PytorchStreamWriter failed writing file"), "PytorchStreamWriter failed"),
        ],
    )
    @pytest.mark.parametrize("where", ["_save_optimizer_and_scheduler", "_save_rng_state"])
    def test_a_failure_keeps_the_one_before(
        self, error: Exception, what: str, where: str, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trainer = start(save_steps=3, save_total_limit=1)
        with monkeypatch.context() as patch:
            self.failing(patch, error, where, 6)
            with pytest.raises(OutputError, match=rf"{what}.*checkpoint-3, is whole: resume from it"):
                trainer.train()
        folder = Path(str(trainer.args.output_dir))
        assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-3", "training.jsonl"]
        start(save_steps=3, save_total_limit=1).train(True)
        assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-9", "training.jsonl"]

    def test_files_that_may_grow_no_further(self, start: Start) -> None:
        """The library's own errors where the system refuses to write more, as on a full disk."""
        trainer = start(save_steps=2)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

        def limit(snapshot: Snapshot) -> None:
            if snapshot.step == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))

        trainer._on_snapshot = limit
        try:
            with pytest.raises(OutputError, match=r"cannot write .*checkpoint-2, is whole"):
                trainer.train()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, previous)
        start(save_steps=2).train(True)

    def test_nothing_to_resume_from(self, start: Start) -> None:
        with pytest.raises(TrainingError, match="has no checkpoint to resume from"):
            start().train(True)

    def test_a_checkpoint_of_somebody_else(self, start: Start) -> None:
        trainer = start(save_steps=2, max_steps=2)
        trainer.train()
        checkpoint = last_checkpoint(Path(str(trainer.args.output_dir)))
        assert checkpoint
        (checkpoint / "figures.json").write_text("{}x")
        with pytest.raises(TrainingError, match=r"figures.json cannot be read"):
            start().train(True)

    def test_a_saved_model_loads(self, start: Start) -> None:
        from transformers import AutoModelForCausalLM

        trainer = start(save_steps=9)
        trainer.train()
        checkpoint = Path(str(trainer.args.output_dir)) / "checkpoint-9"
        assert not list(checkpoint.glob("*.bin")) or list(checkpoint.glob("*.bin")) == [
            checkpoint / "training_args.bin"
        ]

        loaded = AutoModelForCausalLM.from_pretrained(checkpoint)
        for name, value in trainer.model.state_dict().items():  # type: ignore[union-attr]
            assert torch.equal(loaded.state_dict()[name], value)


class TestResume:
    @pytest.mark.parametrize("step", [1, 4, 5, 7])
    def test_an_interrupted_training_goes_on_bit_for_bit(self, step: int, start: Start, exit_trainer: Any) -> None:
        """Dropout, two micro-batches, several epochs (of seven rows' steps), and averages over three steps."""
        settings = {
            "trainer": exit_trainer,
            "gradient_accumulation_steps": 2,
            "logging_steps": 3,
            "eval_strategy": "steps",
            "eval_steps": 3,
        }
        straight = start("straight", **settings)
        straight.train()

        def interrupt(snapshot: Snapshot) -> None:
            if snapshot.step == step and not told:
                told.append(snapshot)
                os.kill(os.getpid(), signal.SIGINT)

        told: list[Snapshot] = []
        before = signal.getsignal(signal.SIGINT)  # a shell's background jobs ignore it
        broken = start("broken", on_snapshot=interrupt, **settings)
        with pytest.raises(KeyboardInterrupt):
            broken.train()
        assert last_checkpoint(Path(str(broken.args.output_dir))).name == f"checkpoint-{step}"  # type: ignore[union-attr]
        assert signal.getsignal(signal.SIGINT) is before

        resumed = start("broken", **settings)
        resumed.train(True)
        assert logged(resumed) == logged(straight)
        expected = straight.model.state_dict()  # type: ignore[union-attr]
        for name, value in resumed.model.state_dict().items():  # type: ignore[union-attr]
            assert torch.equal(value, expected[name]), name

    def test_the_second_interrupt_ends_at_once(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        """With the last checkpoint, from which the figures go on."""
        monkeypatch.setattr("truedepth.training.trainer.interruption._SAME", 0)

        def interrupt(snapshot: Snapshot) -> None:
            if snapshot.step == 6:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)

        straight, broken = start("straight"), start("broken", on_snapshot=interrupt, save_steps=4)
        straight.train()
        with pytest.raises(KeyboardInterrupt):
            broken.train()
        assert [step for step, _ in logged(broken)] == [1, 2, 3, 4, 5]
        resumed = start("broken", save_steps=4)
        resumed.train(True)
        assert logged(resumed) == logged(straight)

    def test_what_a_crash_left_behind_is_no_checkpoint(self, start: Start) -> None:
        trainer = start(save_steps=4)
        trainer.train()
        folder = Path(str(trainer.args.output_dir))
        (folder / "checkpoint-9").rename(folder / ".checkpoint-9.part")
        with (folder / FIGURES_FILE).open("a") as file:
            file.write('{"step": 10, "epo')
        again = start(save_steps=4)
        again.train(True)
        assert [step for step, _ in logged(again)] == list(range(1, 10))
        assert not (folder / ".checkpoint-9.part").exists()

    @pytest.mark.parametrize("way", ["bfloat16", "checkpointing", "lora"])
    def test_with_what_it_composes_with(self, way: str, start: Start, tiny_model: Any) -> None:
        settings: dict[str, Any] = {"bf16": way == "bfloat16"}
        if way == "checkpointing":
            settings |= {"activation_checkpointing": True}

        def model() -> Any:
            from peft import LoraConfig, get_peft_model

            plain = tiny_model("llama", attention_dropout=0.1)
            torch.manual_seed(0)
            return get_peft_model(plain, LoraConfig(r=2, target_modules=["q_proj"])) if way == "lora" else plain

        straight = start("straight", model=model(), **settings)
        straight.train()
        start("broken", model=model(), max_steps=9, save_steps=4, **settings).train()
        folder = Path(str(straight.args.output_dir)).parent / "broken"
        for name in ("checkpoint-8", "checkpoint-9"):
            for path in sorted((folder / name).rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
            (folder / name).rmdir()
        resumed = start("broken", model=model(), **settings)
        resumed.train(True)
        assert logged(resumed) == logged(straight)
        assert logged(straight)[-1][1]["loss"] != logged(straight)[0][1]["loss"]


def test_mixed_precision_is_for_all_of_the_loss(start: Start) -> None:
    """Also for what a trainer computes outside the model's own forward, in training and on held-out text."""
    seen = []

    class Outside(DepthTrainer):
        def compute_loss(self, model: Any, *args: Any, **options: Any) -> Any:
            hidden = torch.ones(1, 32)
            seen.append((model.training, self.model.lm_head(hidden).dtype))  # type: ignore[union-attr]
            return super().compute_loss(model, *args, **options)

    start(trainer=Outside, bf16=True, max_steps=1, eval_strategy="steps", eval_steps=1).train()
    assert set(seen) == {(True, torch.bfloat16), (False, torch.bfloat16)}


class TestFigures:
    def test_snapshots(self, start: Start) -> None:
        seen: list[Snapshot] = []
        trainer = start(on_snapshot=seen.append, max_steps=4, logging_steps=2)
        trainer.train()
        assert [snapshot.step for snapshot in seen] == [1, 2, 2, 3, 4, 4]
        assert {snapshot.total_steps for snapshot in seen} == {4}
        assert all(snapshot.tokens_per_second > 0 for snapshot in seen)
        assert seen[0].seconds_left > 0 and seen[-1].seconds_left == 0
        assert "loss" not in seen[0].figures and "loss" in seen[2].figures

    def test_lines(self, start: Start) -> None:
        trainer = start(max_steps=2)
        trainer.train()
        lines = (Path(str(trainer.args.output_dir)) / FIGURES_FILE).read_text().splitlines()
        first = json.loads(lines[0])
        assert set(first) == {"step", "epoch", "seconds", "values"}
        assert set(first["values"]) == {"loss", "grad_norm", "learning_rate", "tokens_per_second"}
        assert len(lines) == 2

    def test_no_room_for_figures(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        trainer = start()

        def full(*_: Any) -> None:
            raise OutputError("cannot write training.jsonl: the disk is full")

        monkeypatch.setattr("truedepth.training.trainer.figures.FiguresFile.write", full)
        with pytest.raises(OutputError, match="the disk is full"):
            trainer.train()

    @pytest.mark.parametrize(
        ("name", "found"),
        [
            (exit_name("loss", 8), ("loss", 8)),
            ("eval_agreement_exit_12", ("agreement", 12)),
            ("loss", None),
            ("loss_exit_", None),
        ],
    )
    def test_names_of_exits(self, name: str, found: Any) -> None:
        assert exit_of(name) == found

    def test_figures_as_lines(self) -> None:
        figures = Figures(3, 0.5, 1.25, {"loss": 1 / 3})
        assert Figures(**json.loads(figures.to_line())) == figures
