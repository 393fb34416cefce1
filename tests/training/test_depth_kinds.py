"""`truedepth train layerskip` and `truedepth train recover`, from the recipe to what can be done with the product."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import truedepth
from truedepth.cli.measure import command as measure
from truedepth.errors import PlanError, UsageError
from truedepth.measuring import bandwidth
from truedepth.plan.plan_file import load_plan
from truedepth.report import write_report
from truedepth.training.kinds import find_kind
from truedepth.training.run import train


@pytest.fixture(autouse=True)
def _quick(quick_ends: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "_CPU_BYTES", 4096)
    monkeypatch.setattr(bandwidth, "_SECONDS", 0.0)


@pytest.fixture
def run(tiny_folder: Path, write_lines: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    """`run(kind, name="run", resume=False, on_snapshot=..., **fields)`: four steps on the tiny model."""
    lines = [{"prompt": f"{number}+{number}=", "response": str(2 * number)} for number in range(60)]
    source = {"file": str(write_lines(lines)), "format": "prompt-response"}

    def make(kind: str, name: str = "run", data: Any = None, **fields: Any) -> Any:
        options = {key: fields.pop(key) for key in ("resume", "on_snapshot") if key in fields}
        settings = {
            "kind": kind,
            "model": {"name": str(tiny_folder), "device": "cpu"},
            "data": {
                "train": [{**source, "limit": 50}],
                "held_out": [{**source, "skip": 50}],
                "length": 32,
                **(data or {}),
            },
            "steps": 4,
            "batch": 4,
            "learning_rate": 1e-2,
            "logging": {"log_every": 1, "evaluate_every": 2, "save_every": 2, "tensorboard": False},
            **fields,
        }
        found = find_kind(kind)
        return train(found, found.recipe(**settings), tmp_path / name, **options)

    return make


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(truedepth.load(str(folder)).model.state_dict())


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_layerskip(lora: Any, run: Any, tiny_folder: Path, tmp_path: Path) -> None:
    """Figures by exit, and a checkpoint like the one before, which drafts for itself."""
    settings = {"p_max": 0.2, "e_scale": 1.0, "every": 2, "watch": [2, 4]}
    results = run("layerskip", layerskip=settings, lora=lora)
    assert results.kind == "layerskip"
    assert results.trained_parameters == (6 * 928 if lora else results.model.parameters)  # seven matrices a layer
    assert [step for step, _ in results.series("loss_exit_6")] == [1, 2, 3, 4]
    assert [step for step, _ in results.series("agreement_exit_2")] == [2, 4]
    assert [step for step, _ in results.series("eval_loss_exit_4")] == [0, 2, 4]
    assert "exit 4" in write_report(results, tmp_path).read_text(encoding="utf-8")

    before, after = weights(tiny_folder), weights(tmp_path / "run" / "model")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before if ".layers." in name)
    assert torch.equal(before["lm_head.weight"], after["lm_head.weight"]) == (lora is not None)

    loaded = truedepth.load(str(tmp_path / "run" / "model"))
    plain = truedepth.generate(loaded, "7+7=", max_new_tokens=8)
    drafted = truedepth.generate(loaded, "7+7=", max_new_tokens=8, draft="exit:4")
    assert drafted.token_ids == plain.token_ids


@pytest.mark.parametrize(
    "recover",
    [
        {"plans": ["0 1 (2|3) 4 5"]},
        {"plans": ["0-2 4 5"], "lora": {"rank": 2}, "objective": {"kind": "distillation"}},
        {"plans": ["0 (1+2) 3-5"], "layers": "all"},
    ],
)
def test_recover(recover: Any, run: Any, tmp_path: Path) -> None:
    """The product is an ordinary checkpoint, a plan file, and what `measure` can judge."""
    results = run("recover", recover=recover)
    assert [step for step, _ in results.series("eval_cross_entropy")] == [0, 2, 4]
    plan = load_plan(tmp_path / "run")
    assert plan.num_layers == 6 and not any(stage.merged for stage in plan.stages)

    text = tmp_path / "text.txt"
    text.write_text("one and two are three, and so on. " * 200, encoding="utf-8")
    arguments = [str(tmp_path / "run" / "model"), "--plan", str(tmp_path / "run"), "--text", str(text), "--json"]
    result = CliRunner().invoke(measure, [*arguments, "--prompt-tokens", "3", "--new-tokens", "2", "--repeats", "3"])
    assert json.loads(result.stdout)["plans"]["plan"]["quality"]["perplexity"] > 1


def test_the_merged_checkpoint_is_what_was_judged(run: Any, tmp_path: Path) -> None:
    """The loss of the saved model under the saved plan is the last held-out one."""
    results = run("recover", recover={"plans": ["0 (1+2) 3-5"], "lora": {"rank": 2}}, data={"packed": False})
    loaded = truedepth.load(str(tmp_path / "run" / "model"))
    model: Any = truedepth.apply(loaded.model, load_plan(tmp_path / "run"))
    total, tokens = 0.0, 0
    for number in range(50, 60):
        prompt, response = (loaded.tokenizer(text).input_ids for text in (f"{number}+{number}=", str(2 * number)))
        ids = torch.tensor([[*prompt, *response, loaded.tokenizer.eos_token_id]])
        with torch.no_grad():
            losses = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
        total += float(losses[len(prompt) - 1 :].sum())
        tokens += ids.shape[1] - len(prompt)
    assert results.series("eval_loss")[-1][1] == pytest.approx(total / tokens, rel=1e-4)


def test_one_checkpoint_for_several_speedups(run: Any, tmp_path: Path) -> None:
    plans = ["unified-skipping@1.5", "unified-skipping@2"]
    results = run("recover", recover={"plans": plans, "layers": "all"}, data={"packed": False})
    files = [tmp_path / "run" / name for name in ("plan.yaml", "plan-2.yaml")]
    assert [load_plan(file).effective_depth for file in files] == [4, 3]
    assert all(load_plan(file).prefill == "full" for file in files)
    assert {f"eval_cross_entropy_plan_{number}" for number in (1, 2)} <= results.history[0].values.keys()
    assert len(results.product.commands) == 2


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("layerskip", {"layerskip": {"p_max": 0.5}, "lora": {"rank": 2, "dropout": 0.1}}),
        (
            "recover",
            {"recover": {"plans": ["0 (1+2) 3-5"], "lora": {"rank": 2}, "objective": {"kind": "distillation"}}},
        ),
    ],
)
def test_interrupted_and_resumed(kind: str, fields: Any, run: Any, tmp_path: Path) -> None:
    """With adapters, which checkpoints hold by themselves: the same figures and weights, bit for bit."""

    def interrupt(snapshot: Any) -> None:
        if snapshot.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(kind, "broken", **fields, on_snapshot=interrupt)
    run(kind, "broken", **fields, resume=True)
    run(kind, "straight", **fields)
    lines = [
        [json.loads(line)["values"] for line in (tmp_path / name / "training.jsonl").read_text().splitlines()]
        for name in ("broken", "straight")
    ]
    assert [values.get("loss") for values in lines[0]] == [values.get("loss") for values in lines[1]]
    straight = weights(tmp_path / "straight" / "model")
    for name, value in weights(tmp_path / "broken" / "model").items():
        assert torch.equal(value, straight[name]), name


def test_what_does_not_fit_the_model(run: Any) -> None:
    with pytest.raises(PlanError, match="out of range"):
        run("recover", recover={"plans": ["0-7"]})
    with pytest.raises(UsageError, match="no exit after 9 layers"):
        run("layerskip", "other", layerskip={"watch": [9]})
