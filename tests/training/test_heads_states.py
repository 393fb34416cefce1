"""Hidden states on disk: what is in them, and going on with making them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from truedepth.engine.drafts.heads.eagle_head import EagleHead
from truedepth.engine.drafts.heads.exit_head import ExitHead
from truedepth.errors import TextError, TrainingError
from truedepth.models.loading.load import LoadedModel, load
from truedepth.plan import DepthPlan
from truedepth.training.data.sources import DataSource
from truedepth.training.heads.rows import HeadRows
from truedepth.training.heads.states import NOTHING, States, make_states
from truedepth.training.heads.text import HeadText, Passage, Prompts, read_passages

Make = Callable[..., States]


@pytest.fixture
def loaded(tiny_model: Any) -> LoadedModel:
    return LoadedModel(tiny_model("llama"), None, "tiny")  # type: ignore[arg-type]  # nothing is text here


@pytest.fixture
def passages(token_ids: Any) -> list[Passage]:
    """Text to read and prompts to answer, in turns."""
    found = []
    for number in range(10):
        ids = tuple(token_ids(1, 6 + number, seed=number)[0].tolist())
        read = number % 2 == 0
        found.append(Passage(ids, tuple(read and at > 2 for at in range(len(ids))), 0 if read else 7))
    return found


def same(one: States, other: States) -> bool:
    equal = [torch.equal(getattr(one, name), getattr(other, name)) for name in ("ids", "chosen", "positions")]
    return all(equal) and torch.equal(one.at([2, 6], 0, len(one)), other.at([2, 6], 0, len(other)))


class TestStates:
    def test_are_the_models_own(self, loaded: LoadedModel, passages: list[Passage], tmp_path: Path) -> None:
        states = make_states(loaded, passages, tmp_path, [2, 4], tokens=10**6, batch=4)
        starts = [*(states.positions == 0).nonzero()[:, 0].tolist(), len(states)]
        assert len(starts) == len(passages) + 1
        for passage, start, stop in zip(passages, starts, starts[1:], strict=False):
            ids = states.ids[None, start:stop]
            assert ids[0, : len(passage.ids)].tolist() == list(passage.ids)
            with torch.no_grad():
                output = loaded.model(ids, output_hidden_states=True)
            found = states.at([2, 4], start, stop).float()
            expected = torch.cat([output.hidden_states[2], output.hidden_states[4]], -1)[0]
            assert torch.allclose(found, expected, atol=0.01, rtol=0.01)
            assert torch.allclose(
                loaded.model.model.norm(states.at([6], start, stop).float()), output.hidden_states[6][0], atol=0.05
            )
            chosen, likeliest = states.chosen[start:stop].tolist(), output.logits[0].argmax(-1).tolist()
            if passage.new_tokens:
                first = len(passage.ids) - 1
                assert chosen[:first] == [NOTHING] * first
                assert chosen[first:] == likeliest[first:]
                assert chosen[first:-1] == ids[0, first + 1 :].tolist()
            else:
                loss_mask = [*passage.loss_mask[1:], False]
                assert chosen == [
                    token if counted else NOTHING for token, counted in zip(likeliest, loss_mask, strict=True)
                ]

    def test_go_on_where_they_were_interrupted(
        self, loaded: LoadedModel, passages: list[Passage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = make_states(loaded, passages, tmp_path / "whole", [2], tokens=10**6, batch=4)
        written: list[Path] = []

        def interrupted(path: Path, content: Any) -> None:
            if len(written) == 2:
                raise KeyboardInterrupt
            written.append(path)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())

        monkeypatch.setattr("truedepth.training.heads.states.write_atomic", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_states(loaded, passages, tmp_path / "part", [2], tokens=10**6, batch=4)
        monkeypatch.undo()
        before = written[1].stat().st_mtime_ns
        again = make_states(loaded, passages, tmp_path / "part", [2], tokens=10**6, batch=4)
        assert same(again, whole)
        assert written[1].stat().st_mtime_ns == before, "what was there is not made again"

    def test_stop_when_there_are_enough(self, loaded: LoadedModel, passages: list[Passage], tmp_path: Path) -> None:
        few = make_states(loaded, passages, tmp_path, [2], tokens=15, batch=2)
        assert len(few.parts) == 1
        assert len(make_states(loaded, passages, tmp_path, [2], tokens=30, batch=2).parts) == 2
        assert len(make_states(loaded, passages, tmp_path, [2], tokens=15, batch=2).parts) == 1

    def test_more_depths_than_asked_for(self, loaded: LoadedModel, passages: list[Passage], tmp_path: Path) -> None:
        make_states(loaded, passages, tmp_path, [1, 2, 3], tokens=20, batch=2)
        make_states(loaded, passages, tmp_path, [2], tokens=10**6, batch=2)
        with pytest.raises(TrainingError, match="holds states for something else: none at depth 4"):
            make_states(loaded, passages, tmp_path, [2, 4], tokens=20, batch=2)

    def test_of_something_else(
        self, loaded: LoadedModel, passages: list[Passage], tmp_path: Path, tiny_model: Any
    ) -> None:
        make_states(loaded, passages, tmp_path, [2], tokens=20, batch=2)
        with pytest.raises(TrainingError, match="for something else: another text; give another folder, or delete it"):
            make_states(loaded, passages[1:], tmp_path, [2], tokens=20, batch=2)
        other = LoadedModel(tiny_model("qwen2"), None, "tiny")  # type: ignore[arg-type]
        with pytest.raises(TrainingError, match="for something else: another model"):
            make_states(other, passages, tmp_path, [2], tokens=20, batch=2)

    def test_a_damaged_part(self, loaded: LoadedModel, passages: list[Passage], tmp_path: Path) -> None:
        make_states(loaded, passages, tmp_path, [2], tokens=20, batch=2)
        part = tmp_path / "part-00000.safetensors"
        part.write_bytes(part.read_bytes()[:-9])
        with pytest.raises(TrainingError, match=r"part-00000.safetensors is damaged .* delete it, and run the same"):
            make_states(loaded, passages, tmp_path, [2], tokens=20, batch=2)
        (tmp_path / "states.json").write_text("{}")
        with pytest.raises(TrainingError, match=r"states\.json cannot be read"):
            make_states(loaded, passages, tmp_path, [2], tokens=20, batch=2)


class TestRows:
    @pytest.mark.parametrize("length", [8, 31, 500])
    def test_hold_every_token_once(
        self, length: int, loaded: LoadedModel, passages: list[Passage], tmp_path: Path
    ) -> None:
        states = make_states(loaded, passages, tmp_path, [2, 4], tokens=10**6, batch=3)
        exit_head = ExitHead.fresh(loaded.model, DepthPlan.of_layers(range(2), 6))
        eagle_head = EagleHead.fresh(loaded.model, (2, 4))
        for head in (exit_head, eagle_head):
            rows = HeadRows(states, head, 6, length)
            found = [rows[index] for index in range(len(rows))]
            together = {name: torch.cat([row[name] for row in found])[: len(states)] for name in found[0]}
            assert all(len(value) == length for row in found for value in row.values())
            assert torch.equal(together["input_ids"], states.ids)
            assert torch.equal(together["position_ids"], states.positions)
            assert torch.equal(together["last"], states.at([6], 0, len(states)))
            assert torch.equal(together["labels"] == -100, states.chosen == NOTHING)
            assert all((row["labels"][len(states) - index * length :] == -100).all() for index, row in enumerate(found))
            if head is exit_head:
                assert torch.equal(together["states"], states.at([2], 0, len(states)))
            else:
                before = states.at([2, 4], 0, len(states)).roll(1, 0)
                before[states.positions == 0] = 0
                assert torch.equal(together["states"], before)

    def test_nothing_to_learn(self, loaded: LoadedModel, tmp_path: Path) -> None:
        states = make_states(loaded, [Passage((5, 6, 7), (False,) * 3, 0)], tmp_path, [2], tokens=9, batch=1)
        with pytest.raises(TextError, match="leaves nothing to train the head on"):
            HeadRows(states, EagleHead.fresh(loaded.model, (2,)), 6, 8)


class TestText:
    @pytest.fixture
    def tokenizer(self, tiny_folder: Path) -> Any:
        return load(str(tiny_folder)).tokenizer

    def test_prompts_of_a_chat(self, tokenizer: Any, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text('{"prompt": "ab"}\n{"prompt": "cde"}\n')
        prompts = Prompts(source=DataSource(file=str(tmp_path / "a.jsonl"), text_field="prompt"), new_tokens=9)
        found = read_passages(HeadText(answer=(prompts,), tokens=1), tokenizer, 12, seed=0)
        expected = {
            tuple(tokenizer.apply_chat_template([{"role": "user", "content": text}])["input_ids"]): text
            for text in ("ab", "cde")
        }
        assert {passage.ids for passage in found} == set(expected)
        assert {passage.new_tokens for passage in found} == {12 - len("ab") - 2, 12 - len("cde") - 2}
        assert not any(any(passage.loss_mask) for passage in found)

    def test_parts_of_a_text_as_prompts(self, tokenizer: Any, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("abcdefghijklmnopqrstuvwxyz")
        prompts = Prompts(source=DataSource(file=str(tmp_path / "a.txt")), chat=False, prompt_tokens=3, new_tokens=5)
        found = read_passages(HeadText(answer=(prompts,), tokens=1), tokenizer, 64, seed=0)
        assert sorted(tokenizer.decode(passage.ids) for passage in found) == ["abc", "ijk", "qrs"]
        with pytest.raises(TextError, match="leave no room for an answer in passages of 4"):
            read_passages(HeadText(answer=(prompts,), tokens=1), tokenizer, 4, seed=0)

    def test_text_that_is_read(self, tokenizer: Any, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("abcdefghij")
        (tmp_path / "b.jsonl").write_text(json.dumps({"prompt": "xy", "response": "zzz"}) + "\n")
        read = (
            DataSource(file=str(tmp_path / "a.txt")),
            DataSource(file=str(tmp_path / "b.jsonl"), format="prompt-response"),
        )
        found = read_passages(HeadText(read=read, tokens=1), tokenizer, 5, seed=0)
        texts = {tokenizer.decode(passage.ids): passage.loss_mask for passage in found}
        assert texts.pop("xyzzz") == (False, False, True, True, True)
        assert set(texts) == {"abcde", "fghij"}
        assert all(all(loss_mask) for loss_mask in texts.values())

    def test_the_same_seed_gives_the_same_order(self, tokenizer: Any, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("abcdefghijklmnopqrstuvwxyz" * 4)
        text = HeadText(read=(DataSource(file=str(tmp_path / "a.txt")),), tokens=1)
        orders = [read_passages(text, tokenizer, 8, seed) for seed in (0, 0, 1)]
        assert orders[0] == orders[1] != orders[2]

    def test_no_text(self, tokenizer: Any) -> None:
        with pytest.raises(TextError, match="there is no text to make states of; give 'read' or 'answer'"):
            read_passages(HeadText(tokens=1), tokenizer, 8, seed=0)
