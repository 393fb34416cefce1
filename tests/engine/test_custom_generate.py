"""`model.generate(..., custom_generate=speculate(...))` against `generate` itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    set_seed,
)
from transformers.generation.streamers import BaseStreamer

import truedepth
from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary
from truedepth.engine.engine import Engine
from truedepth.errors import MethodError, UsageError
from truedepth.plan import DepthPlan
from truedepth.plan.plan_file import save_plan

DRAFT = "0-3 (4|5)"
NEW = 16


@pytest.fixture
def model(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model("llama")


@pytest.fixture
def padded(token_ids: Callable[..., Any]) -> dict[str, Tensor]:
    """Three prompts of 7, 3 and 5 tokens, padded on the left."""
    ids = token_ids(3, 7)
    mask = torch.ones_like(ids)
    for row, padding in ((1, 4), (2, 2)):
        ids[row, :padding] = mask[row, :padding] = 0
    return {"input_ids": ids, "attention_mask": mask}


class NoRepeats(LogitsProcessor):
    """Forbids the last two tokens, by the row's number one more, and writes into the scores it is given."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        for row in range(len(input_ids)):
            scores[row, input_ids[row, -2:]] = -torch.inf
            scores[row, row + 10] = -torch.inf
        return scores


class Kept(BaseStreamer):
    def __init__(self) -> None:
        self.parts: list[list[int]] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.parts.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended = True


def test_greedy_is_the_same_in_every_family(
    family_name: str, tiny_model: Callable[..., Any], token_ids: Callable[..., Any]
) -> None:
    model, ids = tiny_model(family_name), token_ids(2, 6)
    expected = model.generate(ids, max_new_tokens=NEW, do_sample=False)
    decode = truedepth.speculate("exit:4", num_speculative_tokens=3)
    assert torch.equal(model.generate(ids, max_new_tokens=NEW, do_sample=False, custom_generate=decode), expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"eos_token_id": list(range(40, 60))},
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 8, "eos_token_id": list(range(30, 60))},
        {"max_length": 15},
        {"bad_words_ids": [[5], [9, 9]]},
        {"logits_processor": LogitsProcessorList([NoRepeats()])},
        {"prefix_allowed_tokens_fn": lambda row, _: range(3 + 10 * row, 20 + 10 * row)},
        {"cache_implementation": "static"},
        {"use_cache": False},
    ],
    ids=lambda options: next(iter(options), "plain"),
)
def test_left_padded_batches_are_the_same(options: dict[str, Any], model: Any, padded: dict[str, Tensor]) -> None:
    asked = {**padded, "do_sample": False, **options}
    if "max_length" not in options:
        asked["max_new_tokens"] = NEW
    expected = model.generate(**asked)
    decode = truedepth.speculate(DRAFT, num_speculative_tokens=3)
    assert torch.equal(model.generate(**asked, custom_generate=decode), expected)


@pytest.mark.parametrize("draft", [None, "0-5", ["exit:2", "exit:4"]])
def test_any_draft_is_the_same(draft: Any, model: Any, padded: dict[str, Tensor]) -> None:
    expected = model.generate(**padded, max_new_tokens=NEW, do_sample=False)
    decode = truedepth.speculate(draft)
    assert torch.equal(model.generate(**padded, max_new_tokens=NEW, do_sample=False, custom_generate=decode), expected)


@pytest.mark.parametrize(("draft", "accepted"), [("0-5", "all"), (DRAFT, "some")])
def test_results_tell_what_was_accepted(draft: str, accepted: str, model: Any, padded: dict[str, Tensor]) -> None:
    decode = truedepth.speculate(draft, num_speculative_tokens=4)
    model.generate(**padded, max_new_tokens=NEW, do_sample=False, eos_token_id=None, custom_generate=decode)
    assert [len(result.token_ids) for result in decode.results] == [NEW] * 3
    taken, drafted = (sum(getattr(result, name) for result in decode.results) for name in ("accepted", "drafted"))
    assert 0 < taken < drafted if accepted == "some" else 0 < taken == drafted


def test_stopping_criteria_see_padded_rows(model: Any, padded: dict[str, Tensor]) -> None:
    class Seen(StoppingCriteria):
        """Ends a row once its tokens, padding and prompt among them, add up to enough."""

        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # type: ignore[override]
            assert scores is None
            return (input_ids.sum(1) > 500) | (input_ids.shape[1] > 20)

    asked = {**padded, "max_new_tokens": NEW, "stopping_criteria": StoppingCriteriaList([Seen()])}
    expected = model.generate(**asked, do_sample=False)
    decode = truedepth.speculate("0-5", num_speculative_tokens=4)
    written = model.generate(**asked, do_sample=False, custom_generate=decode)
    lengths = {len(result.token_ids) for result in decode.results}
    assert torch.equal(written, expected)
    assert len(lengths) > 1 and max(lengths) < NEW


def test_sampling_follows_torchs_seed(model: Any, token_ids: Callable[..., Any]) -> None:
    ids = token_ids(1, 6).repeat(3, 1)
    written = []
    for seed in (1, 1, 2):
        set_seed(seed)
        decode = truedepth.speculate(DRAFT, num_speculative_tokens=3)
        written.append(model.generate(ids, max_new_tokens=NEW, do_sample=True, custom_generate=decode))
    assert torch.equal(written[0], written[1])
    assert not torch.equal(written[0], written[2])
    assert not torch.equal(written[0][0], written[0][1])  # rows draw for themselves


@pytest.mark.slow
def test_sampling_has_the_models_distribution(model: Any, token_ids: Callable[..., Any]) -> None:
    ids = token_ids(1, 6).repeat(500, 1)
    asked = {"max_new_tokens": 3, "do_sample": True, "temperature": 0.7, "top_k": 5, "eos_token_id": None}
    asked["custom_generate"] = truedepth.speculate(DRAFT, num_speculative_tokens=2)
    set_seed(0)
    speculated = torch.cat([model.generate(ids, **asked)[:, -1] for _ in range(8)])
    asked.pop("custom_generate")
    plain = torch.cat([model.generate(ids, **asked)[:, -1] for _ in range(8)])
    counts = torch.stack([tokens.bincount(minlength=64) for tokens in (speculated, plain)]).double()
    common = counts[:, counts.sum(0) >= 20]
    chi_square = ((common[0] - common[1]) ** 2 / common.sum(0)).sum()
    assert chi_square < common.shape[1] + 5 * (2 * common.shape[1]) ** 0.5


def test_several_sequences_of_one_prompt(model: Any, token_ids: Callable[..., Any]) -> None:
    asked = {"max_new_tokens": 5, "do_sample": True, "num_return_sequences": 4, "eos_token_id": None}
    assert model.generate(token_ids(1, 6), **asked, custom_generate=truedepth.speculate(DRAFT)).shape == (4, 11)


def test_output_as_a_dictionary(model: Any, padded: dict[str, Tensor]) -> None:
    output = model.generate(
        **padded, max_new_tokens=4, return_dict_in_generate=True, custom_generate=truedepth.speculate(DRAFT)
    )
    assert torch.equal(output.sequences[:, :7], padded["input_ids"])


def test_streamer(model: Any, token_ids: Callable[..., Any]) -> None:
    ids, streamer = token_ids(1, 6), Kept()
    decode = truedepth.speculate("0-5", num_speculative_tokens=4, streamer=streamer)
    written = model.generate(ids, max_new_tokens=11, do_sample=False, eos_token_id=None, custom_generate=decode)
    assert streamer.ended
    assert [len(part) for part in streamer.parts] == [6, 1, 5, 5]
    assert [token for part in streamer.parts for token in part] == written[0].tolist()


def test_an_open_engine_is_used_and_stays_open(model: Any, token_ids: Callable[..., Any]) -> None:
    ids = token_ids(1, 6)
    expected = model.generate(ids, max_new_tokens=NEW, do_sample=False)
    with Engine(model) as engine:
        decode = truedepth.speculate(DRAFT, engine=engine)
        for _ in range(2):
            assert torch.equal(
                model.generate(ids, max_new_tokens=NEW, do_sample=False, custom_generate=decode), expected
            )
    assert torch.equal(model.generate(ids, max_new_tokens=NEW, do_sample=False), expected)


def test_the_engine_of_another_model_is_refused(model: Any, tiny_model: Callable[..., Any]) -> None:
    with Engine(tiny_model("qwen2")) as engine, pytest.raises(UsageError, match="another model"):
        decode = truedepth.speculate(DRAFT, engine=engine)
        model.generate(torch.tensor([[5]]), max_new_tokens=4, custom_generate=decode)


def test_a_plan_that_the_model_runs_is_the_target(model: Any, token_ids: Callable[..., Any]) -> None:
    truedepth.apply(model, DepthPlan.parse("0 2-5", 6))
    ids = token_ids(1, 6)
    expected = model.generate(ids, max_new_tokens=NEW, do_sample=False)
    decode = truedepth.speculate("exit:3", num_speculative_tokens=3)
    assert torch.equal(model.generate(ids, max_new_tokens=NEW, do_sample=False, custom_generate=decode), expected)


def test_peft(model: Any, token_ids: Callable[..., Any]) -> None:
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    ids = token_ids(1, 6)
    expected = wrapped.generate(input_ids=ids, max_new_tokens=NEW, do_sample=False)
    decode = truedepth.speculate(DRAFT, num_speculative_tokens=3)
    written = wrapped.generate(input_ids=ids, max_new_tokens=NEW, do_sample=False, custom_generate=decode)
    assert torch.equal(written, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "beam search"),
        ({"num_beams": 2, "do_sample": True}, "beam sample"),
        ({"penalty_alpha": 0.6, "top_k": 4, "do_sample": False}, "contrastive search"),
        ({"prompt_lookup_num_tokens": 3}, "assisted generation"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"return_dict_in_generate": True, "output_scores": True}, "output_scores"),
        ({"return_dict_in_generate": True, "output_hidden_states": True}, "output_hidden_states"),
        ({"inputs_embeds": torch.zeros(1, 6, 32)}, "inputs_embeds"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]])}, "pad on the left"),
        ({"attention_mask": torch.tensor([[1, 1, 0, 1, 1, 1]])}, "pad on the left"),
        ({"attention_mask": torch.tensor([[0, 0, 0, 0, 0, 0]])}, "pad on the left"),
        ({"position_ids": torch.tensor([[3, 4, 5, 6, 7, 8]])}, "position_ids do not count up from 0"),
        ({"max_new_tokens": 500}, "exceed the model's context of 128"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(
    options: dict[str, Any], message: str, model: Any, token_ids: Callable[..., Any]
) -> None:
    with pytest.raises(UsageError, match=message):
        model.generate(token_ids(1, 6), **{"max_new_tokens": 4, **options}, custom_generate=truedepth.speculate(DRAFT))
    assert not torch.isnan(next(model.parameters())).any()  # nothing is left packed


def test_a_cache_that_holds_tokens_is_refused(model: Any, token_ids: Callable[..., Any]) -> None:
    ids = token_ids(1, 6)
    cache = model(ids[:, :4]).past_key_values
    with pytest.raises(UsageError, match="past_key_values"):
        model.generate(ids, past_key_values=cache, max_new_tokens=4, custom_generate=truedepth.speculate(DRAFT))


def test_a_streamer_for_several_rows_is_refused(model: Any, padded: dict[str, Tensor]) -> None:
    with pytest.raises(UsageError, match="one row, not 3"):
        model.generate(**padded, max_new_tokens=4, custom_generate=truedepth.speculate(DRAFT, streamer=Kept()))


def test_all_of_a_finished_search_is_used(tiny_folder: Path, token_ids: Callable[..., Any], tmp_path: Path) -> None:
    """Its draft vocabulary is known by the tokens that it stands for, so the engine must have a tokenizer."""
    loaded = truedepth.load(str(tiny_folder))
    DraftVocabulary(torch.arange(200)).save(tmp_path, loaded.model, loaded.tokenizer)
    save_plan(DepthPlan.of_layers(range(5), 6), tmp_path / "plan.yaml")
    ids = token_ids(1, 6)
    expected = loaded.model.generate(ids, max_new_tokens=NEW, do_sample=False)
    with Engine(loaded.model, loaded.tokenizer) as engine:
        decode = truedepth.speculate(tmp_path, engine=engine)
        written = loaded.model.generate(ids, max_new_tokens=NEW, do_sample=False, custom_generate=decode)
    assert torch.equal(written, expected)
    with pytest.raises(UsageError, match=r"open an engine with it, truedepth\.Engine\(model, tokenizer\)"):
        loaded.model.generate(ids, max_new_tokens=NEW, custom_generate=truedepth.speculate(tmp_path))


def test_a_draft_deeper_than_the_model_is_refused(model: Any) -> None:
    with pytest.raises(MethodError, match="the model has 6 layers"):
        model.generate(torch.tensor([[5]]), max_new_tokens=4, custom_generate=truedepth.speculate("exit:7"))


def test_rows_that_cannot_be_padded_are_refused(model: Any, padded: dict[str, Tensor]) -> None:
    class FirstRow(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # type: ignore[override]
            return torch.full((len(input_ids),), bool(input_ids[0, 0] != 0))

    model.generation_config.pad_token_id = model.generation_config.eos_token_id = None
    with pytest.raises(UsageError, match="give pad_token_id"):
        model.generate(
            **padded,
            max_new_tokens=4,
            stopping_criteria=StoppingCriteriaList([FirstRow()]),
            custom_generate=truedepth.speculate(DRAFT),
        )
