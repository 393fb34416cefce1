"""Drafting on rows of cached states is what the engine does when it drafts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from truedepth.engine.drafts.heads.eagle_head import EagleHead
from truedepth.engine.drafts.heads.exit_head import ExitHead
from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary
from truedepth.engine.drafts.policy import FixedPolicy
from truedepth.engine.engine import Engine
from truedepth.engine.sampling.request import Request
from truedepth.models.loading.load import LoadedModel
from truedepth.plan import DepthPlan
from truedepth.training.heads import states as exit_head_states
from truedepth.training.heads.loss import HeadDistillation
from truedepth.training.heads.rows import HeadRows
from truedepth.training.heads.states import States, make_states
from truedepth.training.heads.steps import DraftingSteps
from truedepth.training.heads.text import Passage

PART = DraftVocabulary(torch.tensor([2, *range(10, 60)]))
LENGTH = 3


def head_of(model: Any, kind: str) -> ExitHead | EagleHead:
    """An exit head, or an EAGLE head with so many layers."""
    if kind == "exit":
        return ExitHead.fresh(model, DepthPlan.of_layers(range(3), 6), vocabulary=PART, rank=None, input_norm=True)
    return EagleHead.fresh(model, (2, 4, 6), vocabulary=PART, num_layers=int(kind), rank=4)


def stacked(rows: HeadRows, indices: Sequence[int]) -> dict[str, Tensor]:
    found = [rows[index] for index in indices]
    return {name: torch.stack([row[name] for row in found]) for name in found[0]}


def trained(head: ExitHead | EagleHead, model: Any, rows: HeadRows, steps: int = 25) -> HeadDistillation:
    """A head that agrees with the model now and then."""
    distillation = HeadDistillation(head, model, positions=3 if isinstance(head, EagleHead) else 1, keep=0.6)
    optimizer = torch.optim.AdamW(head.parameters(), lr=5e-3)
    distillation.train()
    for step in range(steps):
        losses = distillation(draw=step, **stacked(rows, range(len(rows))))
        optimizer.zero_grad()
        torch.stack([loss for loss, _ in losses]).sum().backward()
        optimizer.step()
    return distillation.eval()


def written(token_ids: Any, count: int = 10, new: int = 36) -> list[Passage]:
    """Prompts to go on from."""
    prompts = [tuple(token_ids(1, 3 + number % 5, seed=number)[0].tolist()) for number in range(count)]
    return [Passage(prompt, (False,) * len(prompt), new) for prompt in prompts]


def foretold(distillation: HeadDistillation, rows: HeadRows, states: States) -> dict[tuple[int, int], int]:
    """By passage and position of a round's first token: how many of LENGTH tokens will be accepted."""
    batch = stacked(rows, [0])
    alive, count = torch.ones_like(batch["labels"], dtype=torch.bool), torch.zeros_like(batch["labels"])
    with torch.no_grad():
        for drafted in DraftingSteps(distillation.head, model_of(distillation)).run(batch, LENGTH):
            chosen = distillation.head.ids[distillation.head.logits(drafted.hidden).argmax(-1)]
            alive = alive & drafted.loss_mask & (chosen == batch["labels"].gather(1, drafted.targets))
            count += alive
    passage = (states.positions == 0).cumsum(0) - 1
    tokens = zip(passage.tolist(), states.positions.tolist(), count[0].tolist(), strict=True)
    return {(number, position): accepted for number, position, accepted in tokens}


def model_of(distillation: HeadDistillation) -> Any:
    return distillation.steps.runner.model


@pytest.mark.parametrize(
    ("name", "kind"), [("llama", "exit"), ("llama", "1"), ("mistral", "2"), ("gemma2", "1"), ("gemma3", "exit")]
)
def test_foretells_what_the_engine_accepts(
    name: str, kind: str, tiny_model: Any, token_ids: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Round by round, over texts that are longer than the attention windows."""
    monkeypatch.setattr(exit_head_states, "STORED", torch.float32)  # bfloat16 would turn close decisions
    model, texts = tiny_model(name), written(token_ids)
    states = make_states(LoadedModel(model, None, name), texts, tmp_path, range(1, 6), tokens=10**6, batch=5)  # type: ignore[arg-type]
    head = head_of(model, kind)
    distillation = trained(head, model, HeadRows(states, head, 6, length=64))
    whole = HeadRows(states, head, 6, length=len(states))
    expected = foretold(distillation, whole, states)
    accepted = rounds = 0
    with Engine(model) as engine:
        draft = engine.draft_of(head)
        for number, text in enumerate(texts):
            (result,) = engine.generate([Request(text.ids, 36)], drafts=[draft], policy=FixedPolicy(LENGTH))
            at = len(text.ids)
            for step in result.steps[:-1]:
                assert expected[number, at] == step.accepted, (number, at)
                at += step.accepted + 1
                accepted, rounds = accepted + step.accepted, rounds + 1
    assert rounds / 2 < accepted < LENGTH * rounds, "nothing was put to the test"


@pytest.fixture(scope="module")
def states(tiny_model: Any, token_ids: Any, tmp_path_factory: pytest.TempPathFactory) -> States:
    loaded = LoadedModel(tiny_model("llama"), None, "llama")  # type: ignore[arg-type]
    folder = tmp_path_factory.mktemp("states")
    return make_states(loaded, written(token_ids), folder, range(1, 6), tokens=10**6, batch=5)


def sums(distillation: HeadDistillation, rows: dict[str, Tensor], draw: int = 0) -> list[list[float]]:
    with torch.no_grad():
        return [[float(value) for value in position] for position in distillation(draw=draw, **rows)]


class TestLoss:
    @pytest.mark.parametrize("kind", ["exit", "1"])
    def test_by_hand(self, kind: str, states: States, tiny_model: Any) -> None:
        """At the first position, from logits of the model's own forward over one passage."""
        model = tiny_model("llama")
        head = head_of(model, kind)
        stop = int((states.positions[1:] == 0).nonzero()[0]) + 1
        ids = states.ids[None, :stop]
        with torch.no_grad():
            output = model(ids, output_hidden_states=True)
            own = [drafted.hidden for drafted in DraftingSteps(head, model).run(rows_of_model(model, head, ids), 1)]
            log_q = head.logits(own[0])[0].log_softmax(-1)
        p = output.logits[0, :, head.ids].softmax(-1)
        chosen = states.chosen[:stop]
        column = [head.ids.tolist().index(token) if token in head.ids.tolist() else -1 for token in chosen.tolist()]
        loss_mask = [at for at, found in enumerate(column) if chosen[at] >= 0 and found >= 0]
        loss = -(p[loss_mask] * log_q[loss_mask]).sum()
        right = sum(int(log_q[at].argmax()) == column[at] for at in loss_mask)
        rows = stacked(HeadRows(states, head, 6, length=stop), [0])
        found = sums(HeadDistillation(head, model, positions=1, keep=1.0).eval(), rows)
        assert found[0][0] == pytest.approx(float(loss), rel=0.02)  # states are bfloat16
        assert abs(found[0][1] - right) <= 1

    def test_leaving_drafts_out_keeps_the_mean(self, states: States, tiny_model: Any) -> None:
        model = tiny_model("llama")
        head = head_of(model, "1")
        rows = stacked(HeadRows(states, head, 6, length=128), [0, 1])
        distillation = HeadDistillation(head, model, positions=3, keep=0.4)
        whole = sums(distillation.eval(), rows)
        drawn = torch.tensor([sums(distillation.train(), rows, draw) for draw in range(30)])  # (30, 3, 2)
        assert drawn[0, 1, 0] != drawn[1, 1, 0]
        assert sums(distillation, rows, 7) == sums(distillation, rows, 7)
        assert drawn.mean(0)[:, 0].tolist() == pytest.approx([loss for loss, _ in whole], rel=0.05)

    def test_passages_do_not_see_each_other(self, states: States, tiny_model: Any) -> None:
        """The loss of a row is that of its passages by themselves."""
        model = tiny_model("llama")
        head = head_of(model, "1")
        distillation = HeadDistillation(head, model, positions=2, keep=1.0).eval()
        starts = [*(states.positions == 0).nonzero()[:, 0].tolist(), len(states)]
        rows = stacked(HeadRows(states, head, 6, length=starts[2]), [0])
        parts = [{name: value[:, start:stop] for name, value in rows.items()} for start, stop in pairwise(starts[:3])]
        together, apart = sums(distillation, rows), [sums(distillation, part) for part in parts]
        for position in range(2):
            assert together[position][0] == pytest.approx(apart[0][position][0] + apart[1][position][0], rel=1e-4)

    @pytest.mark.parametrize("kind", ["exit", "1"])
    def test_learns(self, kind: str, states: States, tiny_model: Any) -> None:
        model = tiny_model("llama")
        before = {name: value.clone() for name, value in model.state_dict().items()}
        head = head_of(model, kind)
        rows = HeadRows(states, head, 6, length=64)
        first = (
            HeadDistillation(head, model, positions=1, keep=1.0).eval().agreement([stacked(rows, range(len(rows)))], 3)
        )
        last = trained(head, model, rows).agreement([stacked(rows, range(len(rows)))], 3)
        assert last[0] > first[0] + 0.3
        assert min(last) > 0.3
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def rows_of_model(model: Any, head: ExitHead | EagleHead, ids: Tensor) -> dict[str, Tensor]:
    """One passage as rows, by the model's own forward."""
    states = model(ids, output_hidden_states=True).hidden_states  # what goes into each layer, and the normed end
    if isinstance(head, ExitHead):
        given = states[3]
    else:
        with torch.no_grad():
            end = states[5]
            end = model.model.layers[5](
                end, position_embeddings=model.model.rotary_emb(end, torch.arange(ids.shape[1])[None])
            )
        beside = torch.cat([states[2], states[4], end[0] if isinstance(end, tuple) else end], -1)
        given = torch.cat([torch.zeros_like(beside[:, :1]), beside[:, :-1]], 1)
    return {"input_ids": ids, "position_ids": torch.arange(ids.shape[1])[None], "states": given, "labels": ids}
