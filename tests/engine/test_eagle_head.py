"""EAGLE heads: they draft losslessly from the target's states, whatever came between their rounds."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from truedepth.engine.cpu.freed import is_freed
from truedepth.engine.cpu.layouts import can_lay_out
from truedepth.engine.drafts.heads.draft_head import load_head
from truedepth.engine.drafts.heads.eagle_head import EagleHead
from truedepth.engine.drafts.heads.exit_head import ExitHead
from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary
from truedepth.engine.drafts.policy import FixedPolicy, Round
from truedepth.engine.engine import Engine
from truedepth.engine.loop.decoder import Decoder
from truedepth.engine.sampling.batch_sampler import BatchSampler
from truedepth.engine.sampling.logits_sampler import LogitsSampler, SamplingParams
from truedepth.errors import DraftError, UsageError

PART = DraftVocabulary(torch.tensor([2, *range(10, 50)]))


def made(model: Any, depths: Sequence[int] = (2, 4, 6), **options: Any) -> EagleHead:
    """A head with weights that the model does not have, as if it had been trained."""
    head = EagleHead.fresh(model, depths, **{"vocabulary": PART, **options})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter), alpha=0.05)
    return head


def tokens(results: Sequence[Any]) -> list[tuple[int, ...]]:
    return [result.token_ids for result in results]


class Scripted:
    """A policy that walks through given rounds: (index of the draft, length), or None for a plain step."""

    wants_confidence = wants_shadow = True

    def __init__(self, rounds: Sequence[tuple[int, int] | None]) -> None:
        self.rounds, self.seen = itertools.cycle(rounds), list[Round]()

    def begin(self, batch: int) -> tuple[int, int] | None:
        return next(self.rounds)

    def goes_on(self, drafted: int, confidences: Sequence[Sequence[float]]) -> bool:
        assert all(len(own) == drafted for own in confidences)
        return True

    def note(self, step: Round) -> None:
        self.seen.append(step)


class TestLossless:
    def test_families(self, family_name: str, tiny_model: Any, asked: Any) -> None:
        """A batch of unequal prompts that end unequally, past the sliding windows."""
        model, requests = tiny_model(family_name), asked([14, 12, 3, 9])
        head = made(model)
        with Engine(model) as engine:
            plain = tokens(engine.generate(requests))
            drafted = engine.generate(requests, drafts=[engine.draft_of(head)], policy=FixedPolicy(3))
        assert tokens(drafted) == plain
        assert sum(result.drafted for result in drafted) > 20

    @pytest.mark.parametrize("name", ["llama", "gemma3"])
    @pytest.mark.parametrize(
        ("depths", "num_layers", "rank", "length"), [((6,), 1, 0, 1), ((1, 3), 2, 4, 4), ((1, 2, 5, 6), 1, None, 32)]
    )
    def test_shapes_of_heads_and_rounds(
        self, name: str, depths: Any, num_layers: int, rank: int | None, length: int, tiny_model: Any, asked: Any
    ) -> None:
        model = tiny_model(name)
        head = made(model, depths, num_layers=num_layers, rank=rank)
        with Engine(model) as engine:
            draft = engine.draft_of(head)
            for requests in (asked([9, 2, 8, 20]), asked(9)[2:3]):
                expected = tokens(engine.generate(requests))
                assert tokens(engine.generate(requests, drafts=[draft], policy=FixedPolicy(length))) == expected

    @pytest.mark.parametrize("temperature", [0.0, 0.7])
    def test_in_turns_with_plain_steps_and_other_drafts(
        self, temperature: float, tiny_model: Any, plan_of: Any, asked: Any
    ) -> None:
        """The head takes in what came without it: more at once than a round brings, too."""
        model = tiny_model("mistral")
        head, exit_head = made(model), ExitHead.fresh(model, plan_of("0-2"), vocabulary=PART)
        rounds = [(0, 3), None, (1, 4), (2, 2), *[None] * 36, (0, 2), (1, 30), (0, 5)]
        requests = asked([70, 14, 55, 60], sampling_params=SamplingParams(temperature=temperature, seed=1))
        with Engine(model) as engine:
            drafts = [engine.draft_of(head), engine.draft_of(exit_head), engine.draft(plan_of("0-4"))]
            policy = Scripted(rounds)
            results = engine.generate(requests, drafts=drafts, policy=policy)
            if temperature == 0:
                assert tokens(results) == tokens(engine.generate(requests))
        assert [len(result.token_ids) for result in results] == [70, 14, 55, 60]
        assert {step.draft for step in policy.seen} == {None, 0, 1, 2}
        assert all(step.shadow[0] == (0, 0) for step in policy.seen)
        assert all(step.shadow[2][1] > 0 for step in policy.seen if step.draft in (None, 0))

    def test_adaptive_policy(self, tiny_model: Any, asked: Any) -> None:
        model = tiny_model("llama")
        head = made(model)
        with Engine(model) as engine:
            plain = tokens(engine.generate(asked(60)))
            results = engine.generate(asked(60), drafts=[engine.draft_of(head)])
        assert tokens(results) == plain
        assert any(result.drafted for result in results)

    def test_prompts_read_in_pieces(self, tiny_model: Any, asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        model = tiny_model("gemma3")
        head = made(model)
        with Engine(model) as engine:
            whole = engine.generate(asked(9), drafts=[engine.draft_of(head)], policy=FixedPolicy(3))
            monkeypatch.setattr("truedepth.engine.loop.decoder.PROMPT_CHUNK", 4)
            parts = engine.generate(asked(9), drafts=[engine.draft_of(head)], policy=FixedPolicy(3))
        assert [result.steps for result in parts] == [result.steps for result in whole]
        assert tokens(parts) == tokens(whole)

    def test_captured_steps(self, tiny_model: Any, asked: Any) -> None:
        """What is replayed reads buffers of its own; states of the target come out of several parts of a step."""

        def record(function: Any, buffers: Sequence[torch.Tensor]) -> Any:
            output = function(buffers).clone()
            return lambda: output.copy_(function(buffers))

        model = tiny_model("llama")
        head = made(model)
        with Engine(model) as engine:
            expected = tokens(engine.generate(asked(20)))
            sequences = engine.sequences(asked(20))
            sampler = BatchSampler([LogitsSampler.of(SamplingParams())] * 4, engine.runner.vocabulary_size)
            drafts = [engine.draft_of(head)]
            decoder = Decoder(engine.runner, engine.target, drafts, FixedPolicy(2), sequences, sampler, record)
            list(decoder.steps())
        assert [tuple(sequence.result().token_ids) for sequence in sequences] == expected

    def test_weights_come_back(self, tiny_model: Any, asked: Any) -> None:
        model = tiny_model("llama")
        head = made(model, rank=2)
        before = copy.deepcopy(head.state_dict())
        with Engine(model) as engine:
            engine.generate(asked(4), drafts=[engine.draft_of(head)], policy=FixedPolicy(2))
            assert is_freed(head.fc.weight) == can_lay_out(model.device, model.dtype)
        assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


class TestRefusals:
    @pytest.mark.parametrize("depths", [(), (0, 3), (3, 7), (4, 2), (3, 3)])
    def test_depths(self, depths: Any, tiny_model: Any) -> None:
        with pytest.raises(UsageError, match=r"give at least one, rising, from 1 to 6"):
            EagleHead.fresh(tiny_model("llama"), depths)

    @pytest.mark.parametrize("num_layers", [0, 7])
    def test_numbers_of_layers(self, num_layers: int, tiny_model: Any) -> None:
        with pytest.raises(UsageError, match=f"the head has {num_layers} layers of its own; it can have 1 to 6"):
            EagleHead.fresh(tiny_model("llama"), (6,), num_layers=num_layers)

    def test_a_target_that_is_a_plan(self, tiny_model: Any, plan_of: Any) -> None:
        model = tiny_model("llama")
        head = made(model)
        with (
            Engine(model, target=plan_of("0 2 4 5")) as engine,
            pytest.raises(DraftError, match="states of the whole model, but the plan to decode with is '0 2 4 5'"),
        ):
            engine.draft_of(head)

    def test_another_model(self, tiny_model: Any) -> None:
        head = made(tiny_model("llama"))
        with Engine(tiny_model("qwen2")) as engine, pytest.raises(DraftError, match="the head is for another model"):
            engine.draft_of(head)

    def test_a_plan_or_a_vocabulary_besides(self, tiny_model: Any, plan_of: Any) -> None:
        model = tiny_model("llama")
        head = made(model)
        with Engine(model) as engine:
            with pytest.raises(UsageError, match="the head drafts by itself, and the draft '0-2' is given too"):
                engine.draft(plan_of("0-2"), head=head)  # type: ignore[arg-type]
            with pytest.raises(UsageError, match="give a head or a vocabulary, not both"):
                engine.draft_of(head, PART)


class TestFiles:
    @pytest.mark.parametrize("rank", [None, 0, 3])
    def test_come_back(self, rank: int | None, tmp_path: Path, tiny_model: Any, asked: Any) -> None:
        model = tiny_model("gemma3")
        head = made(model, (3, 6), num_layers=2, rank=rank)
        head.text, head.agreement = "some chat", {"chat": (0.5, 0.25)}
        head.save(tmp_path)
        loaded = load_head(tmp_path, model)
        assert isinstance(loaded, EagleHead)
        assert (loaded.depths, loaded.text, loaded.agreement) == ((3, 6), "some chat", {"chat": (0.5, 0.25)})
        state = head.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
        with Engine(model) as engine:
            late = load_head(tmp_path, model)  # while the model is packed
            runs = [
                engine.generate(asked(9), drafts=[engine.draft_of(each)], policy=FixedPolicy(3))
                for each in (head, loaded, late)
            ]
        steps = [[result.steps for result in run] for run in runs]
        assert steps[0] == steps[1] == steps[2]

    def test_the_models_rows_are_not_in_the_file(self, tmp_path: Path, tiny_model: Any) -> None:
        model = tiny_model("llama")
        for rank, names in ((0, set()), (2, {"down.weight", "up.weight"}), (None, {"weight"})):
            EagleHead.fresh(model, (6,), rank=rank).save(tmp_path)
            found = {name for name in load_file(tmp_path / "head.safetensors") if name.startswith("projection.")}
            assert found == {f"projection.{name}" for name in names}
            assert json.loads((tmp_path / "head.json").read_text())["projection_rank"] == rank

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"depths": [2, 4]}, "its tensor 'fc.weight' is float32 of shape (32, 96), and the head's has"),
            ({"depths": [2, 4, 7]}, "the depths at which the head reads states are [2, 4, 7]"),
            ({"depths": []}, "the depths at which the head reads states are []"),
            ({"depths": [0]}, "'depths.0': input should be greater than or equal to 1"),
            ({"extra_layers": 0}, "the head has 0 layers of its own; it can have 1 to 6"),
            ({"kind": "exit"}, "'exit': field required"),
        ],
    )
    def test_refused(self, changed: dict[str, Any], message: str, tmp_path: Path, tiny_model: Any) -> None:
        model = tiny_model("llama")
        made(model).save(tmp_path)
        card = json.loads((tmp_path / "head.json").read_text())
        (tmp_path / "head.json").write_text(json.dumps({**card, **changed}))
        with pytest.raises(DraftError) as caught:
            load_head(tmp_path, model)
        assert message in str(caught.value)
