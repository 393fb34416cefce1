"""Exit heads: they draft losslessly, come back from their files bit for bit, and are refused where they do not fit."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from truedepth.engine.cpu.freed import is_freed
from truedepth.engine.cpu.layouts import can_lay_out
from truedepth.engine.drafts.heads.draft_head import load_head
from truedepth.engine.drafts.heads.exit_head import ExitHead
from truedepth.engine.drafts.heads.fingerprint import Fingerprint
from truedepth.engine.drafts.heads.projection import SharedRows
from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary
from truedepth.engine.drafts.policy import FixedPolicy
from truedepth.engine.engine import Engine
from truedepth.engine.runner.caches import KVCache
from truedepth.engine.sampling.logits_sampler import SamplingParams
from truedepth.engine.sampling.request import Request
from truedepth.errors import DraftError, PlanError, UnsupportedModelError, UsageError
from truedepth.models.rewire import apply
from truedepth.plan import DepthPlan, Stage

EXIT = DepthPlan.parse("0-2", 6)
PART = DraftVocabulary(torch.tensor([2, 40, 7, 63, 12, 3, 30, 31, 9, 50, 51, 52, 17]))
HIDDEN = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
PROMPTS = ([5, 9, 13, 11, 40, 3, 3], [7, 8], [33, 12, 50, 4])


def requests(count: int, new: int = 8, **kwargs: Any) -> list[Request]:
    return [Request(prompt, new, ignore_end=True, **kwargs) for prompt in PROMPTS[:count]]


def written(engine: Engine, count: int, head: ExitHead | None = None, plan: DepthPlan = EXIT) -> list[Any]:
    """Results of greedy decoding, with `head` as the draft if it is given."""
    drafts = [] if head is None else [engine.draft(plan, head=head)]
    return engine.generate(requests(count), drafts=drafts, policy=FixedPolicy(3) if drafts else None)


def tokens(results: list[Any]) -> list[tuple[int, ...]]:
    return [result.token_ids for result in results]


def disturbed(head: ExitHead) -> ExitHead:
    """The same head as if it had been trained: with weights that the model does not have."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter), alpha=0.05)
    return head


def greedy_with_and_without(model: Any, batch: int, num_layers: int, input_norm: bool, rank: int | None) -> None:
    """Greedy speculation with a head that nobody trained, against plain greedy decoding."""
    head = disturbed(
        ExitHead.fresh(model, EXIT, num_layers=num_layers, vocabulary=PART, rank=rank, input_norm=input_norm)
    )
    with Engine(model) as engine:
        plain = tokens(written(engine, batch))
        drafted = written(engine, batch, head)
    assert tokens(drafted) == plain
    assert all(result.drafted for result in drafted)


class TestLossless:
    def test_families(self, family_name: str, tiny_model: Callable[..., Any]) -> None:
        greedy_with_and_without(tiny_model(family_name), 3, 1, False, 0)

    @pytest.mark.parametrize("name", ["llama", "gemma3"])
    @pytest.mark.parametrize(("num_layers", "input_norm", "rank"), [(0, False, None), (1, True, 3), (2, False, None)])
    @pytest.mark.parametrize("batch", [1, 3])
    def test_greedy_tokens_are_the_models_own(
        self, name: str, num_layers: int, input_norm: bool, rank: int | None, batch: int, tiny_model: Callable[..., Any]
    ) -> None:
        greedy_with_and_without(tiny_model(name), batch, num_layers, input_norm, rank)

    def test_a_head_that_agrees_is_accepted(self, tiny_model: Callable[..., Any]) -> None:
        """The last layer as the head of the rest of the model is the model itself."""
        model = tiny_model("llama")
        head = ExitHead.fresh(model, (plan := DepthPlan.parse("0-4", 6)))
        with Engine(model) as engine:
            plain = tokens(written(engine, 3))
            drafted = written(engine, 3, head, plan)
        assert tokens(drafted) == plain
        assert [result.acceptance for result in drafted] == [1.0] * 3

    @pytest.mark.parametrize("name", ["gemma2", "gemma3", "smollm3"])
    def test_layers_are_of_the_last_ones_kind(self, name: str, tiny_model: Callable[..., Any]) -> None:
        """Attention windows and rotary embeddings, which differ by layer in these families, are those of the last."""
        model, plan = tiny_model(name), DepthPlan.parse("0-4", 6)
        head = ExitHead.fresh(model, plan)
        with Engine(model) as engine:
            draft, runner = engine.draft(plan, head=head), engine.runner
            cache, ids = KVCache(1, 64), torch.arange(3, 40)[None]
            context = runner.context([0], ids.shape[1], cache.capacity)
            hidden = runner.run(plan.stages, "lp", runner.embed(ids), context, lambda _: cache)
            own, heads = (
                runner.run([stage], "lp", hidden, context, lambda _: cache) for stage in (Stage((5,)), draft.alone[-1])
            )
        assert torch.equal(own, heads)

    @pytest.mark.parametrize("rank", [None, 0, 4])
    def test_without_layers_it_is_the_models_own_head(self, rank: int | None, tiny_model: Callable[..., Any]) -> None:
        model = tiny_model("gemma2", final_logit_softcapping=2.0)
        head = ExitHead.fresh(model, EXIT, num_layers=0, vocabulary=PART, rank=rank)
        with Engine(model) as engine:
            own = engine.draft(EXIT, vocabulary=PART).head.logits(HIDDEN)
            logits = engine.draft(EXIT, head=head).head.logits(HIDDEN)
        assert torch.allclose(logits, own, atol=1e-6)
        assert logits.abs().max() <= 2.0

    def test_sampling(self, tiny_model: Callable[..., Any]) -> None:
        model = tiny_model("llama")
        head = ExitHead.fresh(model, EXIT, vocabulary=PART)
        asked = requests(3, sampling_params=SamplingParams(temperature=1.0, top_k=20, seed=0))
        with Engine(model) as engine:
            results = engine.generate(asked, drafts=[engine.draft(EXIT, head=head)], policy=FixedPolicy(3))
        assert [len(result.token_ids) for result in results] == [8] * 3

    def test_two_drafts_of_one_head(self, tiny_model: Callable[..., Any], apart: Callable[..., Any]) -> None:
        model = tiny_model("llama")
        head = ExitHead.fresh(model, EXIT)
        with Engine(model) as engine:
            first = engine.draft(EXIT, head=head)
            plain = engine.generate(requests(3))
            for draft in (first, apart(first)):
                drafted = engine.generate(requests(3), drafts=[draft], policy=FixedPolicy(2))
                assert tokens(drafted) == tokens(plain)

    def test_groups(self, tiny_model: Callable[..., Any]) -> None:
        model, plan = tiny_model("llama"), DepthPlan.parse("0 (1|2) 4", 6, form="par")
        head = ExitHead.fresh(model, plan)
        with Engine(model) as engine:
            assert tokens(written(engine, 3, head, plan)) == tokens(written(engine, 3))


class TestWeights:
    def test_come_back_when_the_engine_closes(self, tiny_model: Callable[..., Any]) -> None:
        model = tiny_model("llama")
        for rank, count in ((None, 8), (0, 8), (3, 10)):
            head = ExitHead.fresh(model, EXIT, vocabulary=PART, rank=rank)
            before, logits = copy.deepcopy(head.state_dict()), head.logits(HIDDEN)
            with Engine(model) as engine:
                written(engine, 1, head)
                linears = [part for part in head.modules() if isinstance(part, torch.nn.Linear)]
                linears += head.projection.rows if isinstance(head.projection, SharedRows) else []
                packs = can_lay_out(model.device, model.dtype)
                assert [is_freed(linear.weight) for linear in linears] == [packs] * count  # like the model's
            after = head.state_dict()
            assert all(torch.equal(after[name], before[name]) for name in before)
            assert torch.equal(head.logits(HIDDEN), logits)
            head.logits(HIDDEN).sum().backward()
            assert head.norm.weight.grad is not None

    def test_are_the_heads_own(self, tiny_model: Callable[..., Any]) -> None:
        """Training the head leaves the model as it is."""
        model = tiny_model("llama")
        before = copy.deepcopy(model.state_dict())
        disturbed(ExitHead.fresh(model, EXIT, num_layers=2))
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_a_copy_stands_alone(self, tiny_model: Callable[..., Any]) -> None:
        """As for averaged weights in training: its input norm must be its own."""
        head = ExitHead.fresh(tiny_model("llama"), EXIT, input_norm=True)
        twin = copy.deepcopy(head)
        (hook,) = twin.extra_layers[0]._forward_pre_hooks.values()
        assert twin.input_norm is not None
        assert hook.args == (twin.input_norm,)

    def test_start_from_the_last_layers_like_the_last(self, tiny_model: Callable[..., Any]) -> None:
        """Where dense and expert layers alternate, only the latter are like the last."""
        model = tiny_model("qwen3_moe", decoder_sparse_step=2)
        head = ExitHead.fresh(model, EXIT, num_layers=2)
        layers = model.model.layers
        for own, source in zip(head.layers, (layers[3], layers[5]), strict=True):
            assert torch.equal(own.state_dict()["mlp.gate.weight"], source.state_dict()["mlp.gate.weight"])

    def test_of_a_model_under_a_plan(self, tiny_model: Callable[..., Any]) -> None:
        model = tiny_model("llama")
        apply(model, DepthPlan.parse("0-3", 6))
        head = ExitHead.fresh(model, EXIT)
        with Engine(model) as engine:
            assert tokens(written(engine, 1, head)) == tokens(written(engine, 1))


class TestFresh:
    def test_a_plan_for_another_depth(self, tiny_model: Callable[..., Any]) -> None:
        with pytest.raises(PlanError, match="the exit '0-2' is for 8 layers, but the model has 6"):
            ExitHead.fresh(tiny_model("llama"), DepthPlan.parse("0-2", 8))

    @pytest.mark.parametrize("num_layers", [-1, 7])
    def test_a_number_of_layers_that_cannot_be(self, num_layers: int, tiny_model: Callable[..., Any]) -> None:
        with pytest.raises(UsageError, match=f"the head has {num_layers} layers of its own; it can have 0 to 6"):
            ExitHead.fresh(tiny_model("llama"), EXIT, num_layers=num_layers)

    def test_an_input_norm_before_nothing(self, tiny_model: Callable[..., Any]) -> None:
        with pytest.raises(UsageError, match="an input norm stands before the head's own layers, and it has none"):
            ExitHead.fresh(tiny_model("llama"), EXIT, num_layers=0, input_norm=True)

    def test_a_vocabulary_without_the_end(self, tiny_model: Callable[..., Any]) -> None:
        with pytest.raises(DraftError, match=r"lacks the model's end of text \(token 2\)"):
            ExitHead.fresh(tiny_model("llama"), EXIT, vocabulary=DraftVocabulary(torch.tensor([5, 6])))

    @pytest.mark.skipif(not can_lay_out(torch.device("cpu"), torch.float32), reason="neither a C compiler nor oneDNN")
    def test_a_packed_model(self, tiny_model: Callable[..., Any]) -> None:
        model = tiny_model("llama")
        with Engine(model), pytest.raises(UnsupportedModelError, match="close its Engine before making a head"):
            ExitHead.fresh(model, EXIT)

    def test_adapters(self, tiny_model: Callable[..., Any]) -> None:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"], r=2))
        with pytest.raises(UnsupportedModelError, match="merge adapters with merge_and_unload"):
            ExitHead.fresh(model, EXIT)


class TestInADraft:
    def test_another_plan(self, tiny_model: Callable[..., Any]) -> None:
        model = tiny_model("llama")
        head = ExitHead.fresh(model, EXIT)
        with Engine(model) as engine, pytest.raises(DraftError, match="trained for the draft '0-2', not for '0-3'"):
            engine.draft(DepthPlan.parse("0-3", 6), head=head)

    def test_another_form(self, tiny_model: Callable[..., Any]) -> None:
        model, plan = tiny_model("llama"), DepthPlan.parse("0 (1|2)", 6, form="par")
        head = ExitHead.fresh(model, plan)
        with Engine(model) as engine, pytest.raises(DraftError, match=r"for the draft '0 \(1\|2\)' in form par"):
            engine.draft(plan.with_form("lp"), head=head)

    def test_another_model(self, tiny_model: Callable[..., Any]) -> None:
        head = ExitHead.fresh(tiny_model("llama"), EXIT)
        with Engine(tiny_model("qwen2")) as engine, pytest.raises(DraftError, match="is for another model"):
            engine.draft(EXIT, head=head)

    def test_a_vocabulary_besides(self, tiny_model: Callable[..., Any]) -> None:
        model = tiny_model("llama")
        head = ExitHead.fresh(model, EXIT)
        with Engine(model) as engine:
            for draft in (lambda: engine.draft(EXIT, head=head, vocabulary=PART), lambda: engine.draft_of(head, PART)):
                with pytest.raises(UsageError, match="give a head or a vocabulary, not both"):
                    draft()


def require_equal(one: ExitHead, other: ExitHead) -> None:
    """Bit for bit the same weights and logits."""
    ours, theirs = one.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(one.logits(HIDDEN), other.logits(HIDDEN))


class TestFiles:
    def test_families(self, family_name: str, tmp_path: Path, tiny_model: Callable[..., Any]) -> None:
        model = tiny_model(family_name)
        for rank in (None, 0, 3):
            head = disturbed(ExitHead.fresh(model, EXIT, vocabulary=PART, rank=rank, input_norm=True))
            head.save(tmp_path)
            require_equal(head, ExitHead.load(tmp_path, model))

    @pytest.mark.parametrize("num_layers", [0, 2])
    def test_drafts_alike(self, num_layers: int, tmp_path: Path, tiny_model: Callable[..., Any]) -> None:
        model = tiny_model("smollm3")
        head = disturbed(ExitHead.fresh(model, EXIT, num_layers=num_layers))
        head.save(tmp_path)
        loaded = ExitHead.load(tmp_path, model)
        with Engine(model) as engine:
            first = [result.steps for result in written(engine, 3, head)]
            assert first == [result.steps for result in written(engine, 3, loaded)]

    @pytest.mark.parametrize("tied", [False, True])
    def test_loads_into_an_open_engine(self, tied: bool, tmp_path: Path, tiny_model: Callable[..., Any]) -> None:
        model = tiny_model("llama", tie_word_embeddings=tied)
        head = disturbed(ExitHead.fresh(model, EXIT, num_layers=2, vocabulary=PART))
        head.save(tmp_path)
        with Engine(model) as engine:
            loaded = ExitHead.load(tmp_path, model)
            engine.draft_of(loaded)  # it takes the model's rows, which are packed
            assert torch.allclose(loaded.logits(HIDDEN), head.logits(HIDDEN), atol=1e-5)
            assert tokens(written(engine, 3, loaded)) == tokens(written(engine, 3))

    def test_weights_of_a_narrower_type(self, tmp_path: Path, tiny_model: Callable[..., Any]) -> None:
        model = tiny_model("llama")
        head = disturbed(ExitHead.fresh(model, EXIT, num_layers=1, vocabulary=PART))
        for name, dtype in (("wide", None), ("narrow", torch.bfloat16)):
            head.save(tmp_path / name, dtype)
        wide, narrow = (ExitHead.load(tmp_path / name, model) for name in ("wide", "narrow"))
        weight = wide.extra_layers[0].mlp.up_proj.weight
        assert torch.equal(narrow.extra_layers[0].mlp.up_proj.weight, weight.bfloat16().float())
        assert torch.equal(narrow.ids, wide.ids)

    def test_what_is_known_of_it(self, tmp_path: Path, tiny_model: Callable[..., Any]) -> None:
        model = tiny_model("llama")
        model.name_or_path = "owner/name"
        head = ExitHead.fresh(model, EXIT)
        head.text, head.agreement = "some chat", {"chat": (0.5, 0.25), "code": ()}
        head.save(tmp_path / "new" / "folder")
        loaded = ExitHead.load(tmp_path / "new" / "folder", model)
        assert (loaded.exit, loaded.model_name) == (EXIT, "owner/name")
        assert (loaded.text, loaded.agreement) == ("some chat", {"chat": (0.5, 0.25), "code": ()})

    def test_other_types(self, tmp_path: Path, tiny_model: Callable[..., Any]) -> None:
        """A head made in float32 serves the model in bfloat16, and the other way round."""
        for made, used in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)):
            ExitHead.fresh(tiny_model("llama").to(made), EXIT).save(tmp_path)
            head = ExitHead.load(tmp_path, tiny_model("llama").to(made).to(used))
            assert {parameter.dtype for parameter in head.parameters()} == {used}

    def test_the_card(self, tmp_path: Path, tiny_model: Callable[..., Any]) -> None:
        ExitHead.fresh(tiny_model("llama"), DepthPlan.parse("0 (1|2)", 6, form="par"), vocabulary=PART).save(tmp_path)
        card = json.loads((tmp_path / "head.json").read_text())
        assert card.pop("truedepth_version")
        assert card == {
            "format_version": 1,
            "kind": "exit",
            "vocabulary_size": 64,
            "model": "",
            "num_layers": 6,
            "hidden_size": 32,
            "exit": "0 (1|2)",
            "form": "par",
            "extra_layers": 1,
            "input_norm": False,
            "draft_vocabulary_size": 13,
            "projection_rank": 0,
            "text": "",
            "agreement": {},
        }

    @pytest.mark.skipif(not can_lay_out(torch.device("cpu"), torch.float32), reason="neither a C compiler nor oneDNN")
    def test_saving_what_is_packed(self, tmp_path: Path, tiny_model: Callable[..., Any]) -> None:
        model = tiny_model("llama")
        head = ExitHead.fresh(model, EXIT, num_layers=0)
        with Engine(model) as engine:
            engine.draft(EXIT, head=head)
            with pytest.raises(DraftError, match="packed for decoding; close its Engine before saving it"):
                head.save(tmp_path)

    def test_saving_what_training_broke(self, tmp_path: Path, tiny_model: Callable[..., Any]) -> None:
        head = ExitHead.fresh(tiny_model("llama"), EXIT)
        torch.nn.init.constant_(head.norm.weight, float("nan"))  # type: ignore[arg-type]
        with pytest.raises(DraftError, match=r"not finite, in norm\.weight"):
            head.save(tmp_path)
        assert not list(tmp_path.iterdir())


@pytest.fixture
def saved(tmp_path: Path, tiny_model: Callable[..., Any]) -> Path:
    """A folder with a head of the tiny llama."""
    ExitHead.fresh(tiny_model("llama"), EXIT, vocabulary=PART, rank=None).save(tmp_path)
    return tmp_path


def edit_tensors(folder: Path, **changed: torch.Tensor | None) -> None:
    """Replace tensors of a head file, or take them out; '__' stands for a dot."""
    tensors = load_file(folder / "head.safetensors")
    for name, value in changed.items():
        del tensors[name.replace("__", ".")]
        if value is not None:
            tensors[name.replace("__", ".")] = value
    save_file({name: value.clone() for name, value in tensors.items()}, folder / "head.safetensors")


def edit_card(folder: Path, **changed: Any) -> None:
    path = folder / "head.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def refusal(folder: Path, model: Any) -> str:
    with pytest.raises(DraftError) as caught:
        load_head(folder, model)
    assert str(folder) in str(caught.value)
    return str(caught.value)


class TestRefusedFiles:
    @pytest.mark.parametrize(
        ("name", "overrides", "difference"),
        [
            ("llama", {"num_hidden_layers": 5}, "it has 6 decoder layers, and this model 5"),
            ("llama", {"vocab_size": 65}, "it has 64 tokens in its vocabulary, and this model 65"),
            ("llama", {"hidden_size": 64}, "it has 32 numbers in a hidden state, and this model 64"),
            ("qwen2", {}, "its norms have other weights"),
            ("gemma2", {}, "its norms have other weights"),
        ],
    )
    def test_another_model(
        self, name: str, overrides: dict[str, Any], difference: str, saved: Path, tiny_model: Callable[..., Any]
    ) -> None:
        message = refusal(saved, tiny_model(name, **overrides))
        assert f"the head is for another model, which has no name: {difference}" in message

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"projection__weight": None}, "it lacks 1 of the head's tensors: projection.weight"),
            ({"ids": None}, "it lacks ids"),
            ({"fingerprint__norms": None}, "it lacks fingerprint.norms"),
            ({"norm__weight": torch.zeros(31)}, "its tensor 'norm.weight' is float32 of shape (31,), and the head's"),
            ({"norm__weight": torch.zeros(32, dtype=torch.int64)}, "its tensor 'norm.weight' is int64 of shape (32,)"),
            ({"norm__weight": torch.full((32,), torch.nan)}, "it holds numbers that are not finite, in norm.weight"),
            ({"ids": torch.arange(13.0)}, "the ids of a draft vocabulary are float32 of shape (13,)"),
            ({"ids": torch.zeros(13, dtype=torch.int64)}, "the draft vocabulary has ids more than once: 0"),
            ({"ids": torch.arange(2, 14)}, "its tensor 'ids' is int64 of shape (12,)"),
            ({"ids": torch.arange(3, 16)}, "lacks the model's end of text (token 2)"),
            ({"ids": torch.arange(60, 73)}, "the draft vocabulary has the id 72, but the model's vocabulary has 64"),
            ({"fingerprint__norms": torch.zeros(3)}, "its norms have other weights"),
            ({"fingerprint__embedding": torch.full((32, 32), torch.nan)}, "its embedding has other weights"),
        ],
    )
    def test_tensors(self, changed: dict[str, Any], message: str, saved: Path, tiny_model: Callable[..., Any]) -> None:
        edit_tensors(saved, **changed)
        assert message in refusal(saved, tiny_model("llama"))

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"format_version": 2}, "has the format version 2, and this truedepth reads 1"),
            ({"extra_layers": 2}, "it lacks 9 of the head's tensors: extra_layers.1"),
            ({"extra_layers": 0}, "it holds 9 tensors that the head has no place for: extra_layers.0"),
            ({"extra_layers": 10**9}, "the head has 1000000000 layers of its own"),
            ({"extra_layers": "1"}, "'extra_layers': input should be a valid integer"),
            ({"input_norm": True}, "it lacks 1 of the head's tensors: input_norm.weight"),
            ({"draft_vocabulary_size": 12}, "its tensor 'ids' is int64 of shape (13,)"),
            ({"exit": "0-6"}, "layer 6 is out of range"),
            ({"exit": "x"}, "token 'x' at column 1"),
            ({"form": "serial"}, "'form': input should be 'lp' or 'par'"),
            ({"agreement": {"chat": [2.0]}}, "'agreement.chat.0': input should be less than or equal to 1"),
            ({"projection_rank": 0}, "it holds 1 tensors that the head has no place for: projection.weight"),
            ({"projection_rank": 2}, "it lacks 2 of the head's tensors: projection.down.weight, projection.up.weight"),
            ({"kind": "eagle"}, "'depths': field required"),
            ({"kind": "other"}, "'kind': input should be 'exit'"),
            ({"extra": 1}, "'extra': extra inputs are not permitted"),
            ({"num_layers": 7}, "it has 7 decoder layers, and this model 6"),
        ],
    )
    def test_card(self, changed: dict[str, Any], message: str, saved: Path, tiny_model: Callable[..., Any]) -> None:
        edit_card(saved, **changed)
        assert message in refusal(saved, tiny_model("llama"))

    @pytest.mark.parametrize("name", ["head.json", "head.safetensors"])
    def test_missing(self, name: str, saved: Path, tiny_model: Callable[..., Any]) -> None:
        (saved / name).unlink()
        message = refusal(saved, tiny_model("llama"))
        assert f"cannot read {saved / name}: No such file or directory" in message

    def test_truncated(self, saved: Path, tiny_model: Callable[..., Any]) -> None:
        path = saved / "head.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        assert "is truncated or corrupt" in refusal(saved, tiny_model("llama"))

    def test_a_pickle(self, saved: Path, tiny_model: Callable[..., Any]) -> None:
        """A pickle under the name is not opened as one."""
        torch.save({"ids": torch.arange(3)}, saved / "head.safetensors")
        assert "is truncated or corrupt" in refusal(saved, tiny_model("llama"))

    @pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[1]", b"[" * 100_000])
    def test_a_card_that_is_none(self, content: bytes, saved: Path, tiny_model: Callable[..., Any]) -> None:
        (saved / "head.json").write_bytes(content)
        assert "head.json" in refusal(saved, tiny_model("llama"))


class TestFingerprint:
    def difference(self, one: Any, other: Any) -> str | None:
        return Fingerprint.of(one).difference(Fingerprint.of(other))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_survives_another_type(self, family_name: str, dtype: torch.dtype, tiny_model: Callable[..., Any]) -> None:
        assert self.difference(tiny_model(family_name), tiny_model(family_name).to(dtype)) is None

    def test_survives_quantised_matrices(self, tiny_model: Callable[..., Any]) -> None:
        """As in a 4-bit GGUF file, where norms stay as they are."""
        model = tiny_model("llama")
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    step = parameter.abs().max(-1, keepdim=True).values / 7
                    parameter.copy_((parameter / step).round() * step)
        assert self.difference(tiny_model("llama"), model) is None

    def test_survives_packing(self, tiny_model: Callable[..., Any]) -> None:
        for tied in (False, True):
            model = tiny_model("llama", tie_word_embeddings=tied)
            before = Fingerprint.of(model)
            with Engine(model):
                packed = Fingerprint.of(model)
            assert torch.equal(before.embedding, packed.embedding)
            assert torch.equal(before.norms, packed.norms)

    def test_sees_a_tuned_norm(self, tiny_model: Callable[..., Any]) -> None:
        model = tiny_model("llama")
        with torch.no_grad():
            for layer in model.model.layers:
                layer.input_layernorm.weight.mul_(1.02)
        assert self.difference(tiny_model("llama"), model) == "its norms have other weights"

    def test_sees_another_start(self, tiny_model: Callable[..., Any]) -> None:
        """The norms of models that were never trained are all alike."""
        model = tiny_model("llama")
        torch.nn.init.normal_(model.model.embed_tokens.weight)
        assert self.difference(tiny_model("llama"), model) == "its embedding has other weights"
