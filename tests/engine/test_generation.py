"""Text from prompts, whole and streamed, with and without a draft."""

from __future__ import annotations

import copy
import dataclasses
import os
import re
import shlex
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

import truedepth
from truedepth.engine.cpu.freed import is_freed
from truedepth.engine.drafts.heads.exit_head import ExitHead
from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary
from truedepth.engine.engine import Engine
from truedepth.engine.generation import Options, Piece, encode_prompt, generate, stream
from truedepth.engine.speculation import Speculation
from truedepth.errors import DecodingError, DraftError, MethodError, PlanError, UsageError
from truedepth.models.loading.load import LoadedModel, load
from truedepth.models.rewire import apply, restore
from truedepth.plan import DepthPlan
from truedepth.plan.plan_file import save_plan

PROMPT = "Once upon a time"
DRAFT = "0-3 (4|5)"


@pytest.fixture(scope="module")
def loaded(tiny_folder: Path) -> LoadedModel:
    found = load(str(tiny_folder), device="cpu", dtype="float32")
    found.model.generation_config.eos_token_id = None  # a random model ends anywhere
    return found


@pytest.fixture(scope="module")
def greedy(loaded: LoadedModel) -> truedepth.GenerationResult:
    return generate(loaded, PROMPT, max_new_tokens=24)


def is_packed(model: Any) -> bool:
    return is_freed(model.lm_head.weight)


class TestGenerate:
    def test_greedy_equals_transformers(self, loaded: LoadedModel) -> None:
        model: Any = loaded.model
        inputs = loaded.tokenizer(PROMPT, return_tensors="pt")
        expected = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs.input_ids.shape[1] :]
        written = generate(loaded, PROMPT, max_new_tokens=12, raw=True)
        assert written.token_ids == tuple(expected.tolist())
        assert written.text == loaded.tokenizer.decode(expected, skip_special_tokens=True)
        assert (written.prompt_tokens, written.finish_reason) == (len(PROMPT), "length")

    def test_several_prompts_are_one_batch_in_their_order(self, loaded: LoadedModel) -> None:
        prompts = [PROMPT, "x", "A longer prompt than the others"]
        alone = [generate(loaded, prompt, max_new_tokens=10).token_ids for prompt in prompts]
        assert [result.token_ids for result in generate(loaded, prompts, max_new_tokens=10)] == alone
        assert [result.token_ids for result in generate(loaded, tuple(prompts), max_new_tokens=10)] == alone

    def test_chat_template(self, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        assert generate(loaded, PROMPT, max_new_tokens=1).prompt_tokens == len(PROMPT) + 2
        monkeypatch.setattr(loaded.tokenizer, "chat_template", None)
        assert generate(loaded, PROMPT, max_new_tokens=1).prompt_tokens == len(PROMPT)

    def test_named_chat_templates(self, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        templates = {"rag": "a{{ messages[0].content }}", "default": "<s>{{ messages[0].content }}"}
        monkeypatch.setattr(loaded.tokenizer, "chat_template", templates)
        assert encode_prompt(loaded.tokenizer, "x", raw=False) == [1, *loaded.tokenizer("x")["input_ids"]]
        tokens = generate(loaded, PROMPT, max_new_tokens=4, chat_template="rag").token_ids
        assert tokens == generate(loaded, f"a{PROMPT}", max_new_tokens=4, raw=True).token_ids

    def test_seed(self, loaded: LoadedModel) -> None:
        first, again, other = (
            generate(
                loaded, PROMPT, max_new_tokens=24, sampling_params=truedepth.SamplingParams(temperature=1.5, seed=seed)
            ).text
            for seed in (1, 1, 2)
        )
        assert first == again != other

    def test_seed_leaves_the_random_state(self, loaded: LoadedModel) -> None:
        before = torch.random.get_rng_state()
        generate(loaded, PROMPT, max_new_tokens=4, sampling_params=truedepth.SamplingParams(temperature=1.0, seed=1))
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_sampling_from_one_token_is_greedy(self, loaded: LoadedModel, greedy: truedepth.GenerationResult) -> None:
        for only in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
            sampling_params = truedepth.SamplingParams(temperature=2.0, **only)  # type: ignore[arg-type]
            assert (
                generate(loaded, PROMPT, max_new_tokens=24, sampling_params=sampling_params).token_ids
                == greedy.token_ids
            )

    def test_the_models_own_settings_do_not_leak(
        self, loaded: LoadedModel, greedy: truedepth.GenerationResult, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in (("do_sample", True), ("temperature", 9.0), ("top_k", 3)):
            monkeypatch.setattr(loaded.model.generation_config, name, value)
        assert generate(loaded, PROMPT, max_new_tokens=24).token_ids == greedy.token_ids

    def test_stop_string(self, loaded: LoadedModel, greedy: truedepth.GenerationResult) -> None:
        at = next(index for index in range(5, len(greedy.text)) if greedy.text[index].isascii())
        stop = greedy.text[at : at + 1]
        written = generate(loaded, PROMPT, max_new_tokens=24, stop=stop)
        assert written.text == greedy.text[: greedy.text.index(stop)]
        assert written.finish_reason == "stop"
        assert generate(loaded, PROMPT, max_new_tokens=24, stop=["nowhere", stop]).text == written.text

    @pytest.mark.parametrize("draft", [None, "0-5"])
    def test_a_stop_string_with_a_special_token(
        self, draft: str | None, loaded: LoadedModel, greedy: truedepth.GenerationResult
    ) -> None:
        """As transformers' `stop_strings` do, whether the token ends the text anyhow or not."""
        tokenizer: Any = copy.deepcopy(loaded.tokenizer)
        ids = greedy.token_ids
        at = next(index for index in range(2, len(ids)) if ids[index] not in ids[:index])
        name, before = tokenizer.convert_ids_to_tokens(ids[at]), tokenizer.decode(ids[at - 1])
        tokenizer.add_special_tokens({"additional_special_tokens": [name]})
        marked = dataclasses.replace(loaded, tokenizer=tokenizer)
        for stop in (name, before + name):
            written = stream(marked, PROMPT, max_new_tokens=24, stop=stop, draft=draft)
            assert "".join(piece.text for piece in written) == written.result.text
            assert (written.result.token_ids, written.result.finish_reason) == (ids[: at + 1], "stop")
            assert written.result.text == tokenizer.decode(ids[: at if stop == name else at - 1])

    def test_logprobs(self, loaded: LoadedModel) -> None:
        written = generate(loaded, PROMPT, max_new_tokens=6, logprobs=True, raw=True)
        ids = torch.tensor([[*loaded.tokenizer(PROMPT)["input_ids"], *written.token_ids]])
        logged = (
            loaded.model(ids).logits.log_softmax(-1)[0, len(PROMPT) - 1 : -1].gather(1, ids[0, len(PROMPT) :, None])
        )
        assert written.logprobs == pytest.approx(logged[:, 0].tolist(), abs=1e-4)

    def test_an_open_engine_stays_open(self, loaded: LoadedModel, greedy: truedepth.GenerationResult) -> None:
        with Engine(loaded.model, loaded.tokenizer) as engine:
            for _ in range(2):
                assert generate(engine, PROMPT, max_new_tokens=24).token_ids == greedy.token_ids
                assert is_packed(loaded.model)
        assert not is_packed(loaded.model)

    def test_a_plan_that_the_model_runs(self, loaded: LoadedModel, greedy: truedepth.GenerationResult) -> None:
        plan = DepthPlan.parse("0 (1|2) 4 5", 6)
        apply(loaded.model, plan)
        shallower = generate(loaded, PROMPT, max_new_tokens=24)
        speculated = generate(loaded, PROMPT, max_new_tokens=24, draft="exit:2", num_speculative_tokens=2)
        restore(loaded.model)
        with Engine(loaded.model, loaded.tokenizer, target=plan) as engine:
            assert generate(engine, PROMPT, max_new_tokens=24).token_ids == shallower.token_ids
        assert shallower.token_ids == speculated.token_ids != greedy.token_ids

    def test_the_context_can_be_filled(self, loaded: LoadedModel) -> None:
        assert generate(loaded, "x" * 510, max_new_tokens=2, raw=True).prompt_tokens == 510


class TestPlan:
    """The plan that a text is written with, said in the call."""

    @pytest.mark.parametrize("notation", ["0-3 5", "0 (1|2) 3-5"])
    def test_as_if_it_was_put_on_the_model(self, notation: str, loaded: LoadedModel, tmp_path: Path) -> None:
        plan = DepthPlan.parse(notation, 6)
        save_plan(plan, tmp_path / "plan.yaml")
        apply(loaded.model, plan)
        expected = generate(loaded, PROMPT, max_new_tokens=12)
        restore(loaded.model)
        for given in (plan, notation, tmp_path):
            assert generate(loaded, PROMPT, max_new_tokens=12, plan=given).token_ids == expected.token_ids
        drafted = generate(loaded, PROMPT, max_new_tokens=12, plan=plan, draft="0-2", num_speculative_tokens=2)
        assert drafted.token_ids == expected.token_ids

    def test_an_open_engine_keeps_its_own(self, loaded: LoadedModel) -> None:
        plan = DepthPlan.parse("0-3 5", 6)
        with Engine(loaded.model, loaded.tokenizer, target=plan) as engine:
            generate(engine, PROMPT, max_new_tokens=2, plan="0-3 5")
            with pytest.raises(UsageError, match="the engine is open with the plan '0-3 5'"):
                generate(engine, PROMPT, max_new_tokens=2, plan="0-5")


class TestDrafts:
    @pytest.mark.parametrize(
        ("draft", "length"),
        [
            ("exit:4", None),
            ("exit:4", 1),
            (DRAFT, 4),
            ("unified-skipping@1.5", 3),
            (DepthPlan.parse("0 2-5", 6), None),
            (["exit:2", "exit:4"], None),
        ],
    )
    def test_greedy_text_does_not_change(
        self, draft: Any, length: int | None, loaded: LoadedModel, greedy: truedepth.GenerationResult
    ) -> None:
        written = generate(loaded, PROMPT, max_new_tokens=24, draft=draft, num_speculative_tokens=length)
        assert written.token_ids == greedy.token_ids

    def test_a_seed_with_a_draft_of_fixed_length(self, loaded: LoadedModel) -> None:
        first, again, other = (
            generate(
                loaded,
                PROMPT,
                max_new_tokens=24,
                sampling_params=truedepth.SamplingParams(temperature=1.5, seed=seed),
                draft=DRAFT,
                num_speculative_tokens=3,
            )
            for seed in (1, 1, 2)
        )
        assert first.token_ids == again.token_ids != other.token_ids
        assert 0 < first.accepted < first.drafted

    def test_a_perfect_draft(self, loaded: LoadedModel) -> None:
        written = generate(loaded, PROMPT, max_new_tokens=25, draft="0-5", num_speculative_tokens=3)
        assert (written.drafted, written.accepted, len(written.steps)) == (18, 18, 6)
        assert written.from_draft == (False, *[True, True, True, False] * 6)

    def test_prepared_drafts(self, loaded: LoadedModel, greedy: truedepth.GenerationResult) -> None:
        with Engine(loaded.model, loaded.tokenizer) as engine:
            draft = engine.draft(DepthPlan.parse(DRAFT, 6))
            written = generate(engine, PROMPT, max_new_tokens=24, draft=draft, num_speculative_tokens=4)
        assert written.token_ids == greedy.token_ids
        assert written.drafted > 0

    def test_vocabulary(self, loaded: LoadedModel, greedy: truedepth.GenerationResult) -> None:
        part = DraftVocabulary(torch.tensor(sorted(set(greedy.token_ids))[1:]))
        written = generate(loaded, PROMPT, max_new_tokens=24, draft="0-5", num_speculative_tokens=3, vocabulary=part)
        assert written.token_ids == greedy.token_ids
        assert 0 < written.accepted < written.drafted

    def test_the_vocabulary_beside_a_plan(
        self, loaded: LoadedModel, greedy: truedepth.GenerationResult, tmp_path: Path
    ) -> None:
        """As a finished search for a draft leaves it."""
        save_plan(DepthPlan.full(6), tmp_path / "plan.yaml")
        part = DraftVocabulary(torch.tensor(sorted(set(greedy.token_ids))[1:]))
        part.save(tmp_path, loaded.model, loaded.tokenizer)
        written = generate(loaded, PROMPT, max_new_tokens=24, draft=str(tmp_path), num_speculative_tokens=3)
        assert written.token_ids == greedy.token_ids
        assert 0 < written.accepted < written.drafted

    def test_an_exit_head_drafts_with_its_own_plan(
        self, loaded: LoadedModel, greedy: truedepth.GenerationResult
    ) -> None:
        head = ExitHead.fresh(loaded.model, DepthPlan.of_layers(range(5), 6))
        written = generate(loaded, PROMPT, max_new_tokens=24, draft=head, num_speculative_tokens=3)
        assert written.token_ids == greedy.token_ids
        assert written.acceptance == 1.0  # a fresh head is the model's last layer, which the exit leaves out

    def test_the_folder_of_a_head_or_of_its_training(self, loaded: LoadedModel, tmp_path: Path) -> None:
        ExitHead.fresh(loaded.model, DepthPlan.of_layers(range(5), 6)).save(tmp_path / "head")
        for folder in (tmp_path, str(tmp_path / "head")):
            written = generate(loaded, PROMPT, max_new_tokens=9, draft=folder, num_speculative_tokens=3)
            assert (written.drafted, written.acceptance) == (6, 1.0)

    @pytest.mark.parametrize("draft", ["exit:4", DepthPlan.of_layers(range(4), 6)], ids=str)
    def test_a_draft_that_is_given_again_is_the_same(
        self, draft: str | DepthPlan, loaded: LoadedModel, tmp_path: Path
    ) -> None:
        """So what is seen of it adds up, and its files are read once."""
        DraftVocabulary(torch.arange(200)).save(tmp_path, loaded.model, loaded.tokenizer)
        with Engine(loaded.model, loaded.tokenizer) as engine:
            for vocabulary in (None, tmp_path):
                asked = [Speculation(draft=draft, vocabulary=vocabulary) for _ in range(2)]
                first, again = (one.prepare(engine)[0] for one in asked)
                assert first[0] is again[0]

    @pytest.mark.parametrize(
        ("options", "kind", "message"),
        [
            ({"draft": "exit:7"}, MethodError, "exit is 7, but the model has 6 layers"),
            ({"draft": "nowhere"}, PlanError, "no plan file or run 'nowhere'"),
            ({"draft": 3}, UsageError, "3 is no draft; give a plan.yaml"),
            ({"draft": ["exit:2", None]}, UsageError, "None is no draft"),
            ({"plan": 3}, PlanError, "3 is no plan; give a plan.yaml"),
            ({"plan": "exit:7"}, MethodError, "exit is 7, but the model has 6 layers"),
            ({"draft": DepthPlan.full(8)}, PlanError, "is for 8 layers, but the model has 6"),
            ({"draft": "0 (1+2)"}, PlanError, "merges layers"),
            ({"draft": "exit:2", "num_speculative_tokens": 0}, UsageError, "the draft length is 0; it must be 1 to 32"),
            ({"draft": "exit:2", "num_speculative_tokens": 33}, UsageError, "the draft length is 33"),
            ({"draft": ["exit:2", "exit:3"], "num_speculative_tokens": 2}, UsageError, "give one draft"),
            ({"num_speculative_tokens": 2}, UsageError, "a draft length is given, but no draft"),
            ({"draft": [], "num_speculative_tokens": 2}, UsageError, "a draft length is given, but no draft"),
            ({"vocabulary": DraftVocabulary(torch.arange(9))}, UsageError, "a draft vocabulary is given, but no draft"),
            ({"draft": "exit:2", "vocabulary": DraftVocabulary(torch.tensor([10**6]))}, DraftError, "1000000"),
        ],
    )
    def test_what_cannot_be_is_refused(
        self, options: dict[str, Any], kind: type[Exception], message: str, loaded: LoadedModel
    ) -> None:
        for call in (generate, stream):
            with pytest.raises(kind, match=message):
                call(loaded, PROMPT, max_new_tokens=2, **options)  # type: ignore[operator]
            assert not is_packed(loaded.model)


class TestStream:
    def test_pieces_make_the_result(self, loaded: LoadedModel) -> None:
        written = stream(loaded, PROMPT, max_new_tokens=40, draft="0-5", num_speculative_tokens=3)
        pieces = list(written)
        result = written.result
        assert "".join(piece.text for piece in pieces) == result.text
        assert sum((piece.token_ids for piece in pieces), ()) == result.token_ids
        origins = [piece.from_draft for piece in pieces for _ in piece.token_ids]
        assert tuple(origins) == result.from_draft
        assert [len(piece.token_ids) for piece in pieces[:5]] == [1, 3, 1, 3, 1]
        assert result.token_ids == generate(loaded, PROMPT, max_new_tokens=40).token_ids
        assert not is_packed(loaded.model)

    def test_stop_string_is_never_shown(self, loaded: LoadedModel, greedy: truedepth.GenerationResult) -> None:
        stop = greedy.text[8:10]
        written = stream(loaded, PROMPT, max_new_tokens=24, stop=stop, draft="0-5", num_speculative_tokens=3)
        shown = "".join(piece.text for piece in written)
        assert shown == written.result.text == greedy.text[: greedy.text.index(stop)]

    def test_an_end_token_has_no_text(
        self, loaded: LoadedModel, greedy: truedepth.GenerationResult, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        end = greedy.token_ids[6]
        monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", end)
        written = stream(loaded, PROMPT, max_new_tokens=24)
        pieces = list(written)
        assert written.result.finish_reason == "stop"
        assert pieces[-1].token_ids == (end,)
        assert "".join(piece.text for piece in pieces) == written.result.text

    def test_what_was_held_back_before_an_end_token_is_shown(
        self, loaded: LoadedModel, greedy: truedepth.GenerationResult, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", greedy.token_ids[6])
        text = generate(loaded, PROMPT, max_new_tokens=24).text
        written = stream(loaded, PROMPT, max_new_tokens=24, stop=f"{text[-1]}, and more")
        assert "".join(piece.text for piece in written) == written.result.text == text

    def test_result_while_it_is_written(self, loaded: LoadedModel) -> None:
        with stream(loaded, PROMPT, max_new_tokens=24) as written:
            next(written)
            with pytest.raises(UsageError, match="still being written"):
                _ = written.result

    def test_closing_ends_it(self, loaded: LoadedModel) -> None:
        with stream(loaded, PROMPT, max_new_tokens=24) as written:
            begun = [next(written), next(written)]
        assert list(written) == []
        assert (written.result.finish_reason, len(written.result.token_ids)) == ("cancelled", 2)
        assert written.result.text.startswith("".join(piece.text for piece in begun))
        assert not is_packed(loaded.model)

    @pytest.mark.parametrize("begun", [True, False])
    @pytest.mark.parametrize("how", ["close", "forget"])
    def test_memory_is_freed_and_the_model_put_back(
        self, how: str, begun: bool, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from truedepth.engine.loop import decoder

        caches: list[Any] = []

        class Watched(decoder.KVCache):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                caches.append(weakref.ref(self))

        monkeypatch.setattr(decoder, "KVCache", Watched)
        written: Any = stream(loaded, PROMPT, max_new_tokens=24, draft="exit:2")
        if begun:
            next(written)
            assert caches
        assert is_packed(loaded.model)
        if how == "close":
            written.close()
        else:
            del written
        assert not is_packed(loaded.model)
        assert [cache for cache in caches if cache() is not None] == []

    def test_an_open_engine_stays_open(self, loaded: LoadedModel) -> None:
        with Engine(loaded.model, loaded.tokenizer) as engine:
            with stream(engine, PROMPT, max_new_tokens=4) as written:
                next(written)
            assert is_packed(loaded.model)
            assert (
                generate(engine, PROMPT, max_new_tokens=4).token_ids
                == generate(engine, PROMPT, max_new_tokens=4).token_ids
            )

    def test_logits_that_are_not_numbers(self, tiny_folder: Path) -> None:
        broken = load(str(tiny_folder), device="cpu", dtype="float32")
        norm: Any = broken.model.get_submodule("model.norm")
        written = stream(broken, PROMPT, max_new_tokens=8)
        first = next(written)
        norm.weight.data.fill_(float("nan"))
        with pytest.raises(DecodingError, match="not numbers"):
            next(written)
        assert written.result.token_ids == first.token_ids
        assert not is_packed(broken.model)


class TestBadInput:
    @pytest.mark.parametrize(
        ("prompt", "new", "message"),
        [
            ("", 4, "the prompt is empty"),
            (" \n", 4, "the prompt is empty"),
            (PROMPT, 0, "the number of new tokens is 0"),
            ("x" * 512, 1, "the prompt has 512 tokens, but the model's context is 512"),
            ("x" * 500, 20, "ask for at most 12 new tokens"),
        ],
    )
    def test_prompts(self, prompt: str, new: int, message: str, loaded: LoadedModel) -> None:
        for call in (generate, stream):
            with pytest.raises(UsageError, match=message):
                call(loaded, prompt, max_new_tokens=new, raw=True)  # type: ignore[operator]
            assert not is_packed(loaded.model)

    def test_no_prompt(self, loaded: LoadedModel) -> None:
        with pytest.raises(UsageError, match="nothing to generate"):
            generate(loaded, [])

    def test_one_empty_prompt_of_several(self, loaded: LoadedModel) -> None:
        with pytest.raises(UsageError, match="the prompt is empty"):
            generate(loaded, [PROMPT, ""])

    def test_empty_stop_string(self, loaded: LoadedModel) -> None:
        with pytest.raises(UsageError, match="a stop string is empty"):
            generate(loaded, PROMPT, stop="")

    @pytest.mark.parametrize(
        ("template", "name", "message"),
        [
            (
                {"tool_use": "x", "rag": "x"},
                None,
                "no chat template 'default', but rag, tool_use; .*--raw",
            ),
            ({"default": "x", "rag": "x"}, "more", "no chat template 'more', but default, rag"),
            ({}, None, "no chat template 'default', but none"),
            ("x", "rag", "only one chat template, without a name"),
            (None, "rag", "the tokenizer has no chat template; leave out"),
            ("{{ raise_exception('System first') }}", None, "cannot write the prompt: System first; .*--raw"),
            ("{{ messages[0].content.no.such }}", None, "cannot write the prompt: 'str object' has no attribute 'no'"),
            ("{{ missing.name }}", None, "cannot write the prompt: 'missing' is undefined"),
            ("{% for %}", None, "cannot write the prompt: .*--raw"),
            ("{% if false %}x{% endif %}", None, "chat template writes nothing; .*--raw"),
        ],
    )
    def test_chat_templates(
        self, template: Any, name: str | None, message: str, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loaded.tokenizer, "chat_template", template)
        with pytest.raises(UsageError, match=message):
            generate(loaded, PROMPT, chat_template=name)

    def test_text_that_is_none(self, loaded: LoadedModel) -> None:
        for raw in (True, False):
            with pytest.raises(UsageError, match=r"the prompt has U\+D800, which is half of a character"):
                generate(loaded, "a\ud800", raw=raw)
        with pytest.raises(UsageError, match=r"a stop string has U\+DCE9"):
            generate(loaded, PROMPT, stop=os.fsdecode(b"caf\xe9"))

    def test_not_a_model(self, loaded: LoadedModel) -> None:
        with pytest.raises(UsageError, match=r"cannot generate with a str; give what truedepth\.load returns"):
            generate("smollm2-135m", PROMPT)  # type: ignore[call-overload]
        with pytest.raises(UsageError, match="cannot generate with a LlamaForCausalLM"):
            stream(loaded.model, PROMPT)  # type: ignore[arg-type]

    def test_an_engine_without_a_tokenizer(self, loaded: LoadedModel) -> None:
        with Engine(loaded.model) as engine, pytest.raises(UsageError, match="the engine has no tokenizer"):
            generate(engine, PROMPT)

    def test_unknown_option(self, loaded: LoadedModel) -> None:
        with pytest.raises(TypeError, match="max_tokens"):
            generate(loaded, PROMPT, max_tokens=4)  # type: ignore[call-overload]


def test_lazy_exports() -> None:
    assert truedepth.generate is generate
    assert truedepth.stream is stream
    assert truedepth.Engine is Engine
    assert Piece("a", (1,), True).from_draft


class TestPage:
    """What `docs/decoding.md` shows runs, with fewer tokens and a tiny model in the place of the embedded one."""

    PAGE = (Path(__file__).parents[2] / "docs" / "decoding.md").read_text(encoding="utf-8")

    def test_python(
        self, tiny_model: Any, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        model = tiny_model("llama", num_hidden_layers=30, vocab_size=len(loaded.tokenizer))
        monkeypatch.setattr(truedepth, "load", lambda source: LoadedModel(model, loaded.tokenizer, source))
        names: dict[str, Any] = {}
        for block in re.findall(r"^```python\n(.+?)^```$", self.PAGE, re.MULTILINE | re.DOTALL):
            exec(re.sub(r"max_new_tokens=\d+", "max_new_tokens=6", block), names)
        assert capsys.readouterr().out
        assert names["output"].shape[0] == len(names["prompts"]) == len(names["speculate"].results)
        assert len(names["result"].token_ids) == 6
        assert not is_packed(model)

    def test_commands(self) -> None:
        from truedepth.cli.generate import command

        (block,) = re.findall(r"^```sh\n(.+?)^```$", self.PAGE, re.MULTILINE | re.DOTALL)
        for line in block.splitlines():
            program, name, *args = shlex.split(line)
            assert (program, name) == ("truedepth", "generate")
            command.make_context(name, args)

    def test_every_option_is_told(self) -> None:
        told = {
            name
            for row in re.findall(r"^\| (`.+?) \|", self.PAGE, re.MULTILINE)
            for name in re.findall(r"`(\w+)`", row)
        }
        assert set(Options.__annotations__) <= told
