"""Speculation is lossless: for any draft and any target, its tokens are those of plain decoding."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary
from truedepth.engine.drafts.policy import FixedPolicy, Round
from truedepth.engine.engine import Engine
from truedepth.engine.sampling.acceptance import accept_greedy
from truedepth.engine.sampling.logits_sampler import SamplingParams
from truedepth.engine.sampling.request import Request
from truedepth.engine.sampling.result import GenerationResult
from truedepth.errors import PlanError
from truedepth.models.rewire import apply
from truedepth.plan import DepthPlan

DRAFTS = [
    ("0-2", "lp", "plan"),
    ("0 2 3 5", "lp", "plan"),
    ("0 1 (2|3) 4 5", "lp", "plan"),
    ("0 1 (2|3) 4 5", "par", "plan"),
    ("0 2 4 5", "lp", "full"),
    ("1 0 2 4 3 5", "lp", "plan"),
]
"""An early exit, a skip plan, groups of both forms, unified skipping, another order."""

TARGETS = [
    ("0-5", "lp", "plan"),
    ("0 2 4 5", "lp", "plan"),
    ("0 2 4 5", "lp", "full"),
    ("0 1 (2|3) 5", "lp", "full"),
    ("1-4", "lp", "plan"),
    ("0 (1|2) 4 5", "par", "plan"),
    ("0-2", "lp", "plan"),
    ("2 0 1 5", "lp", "plan"),
]
"""The model itself, and plans that skip, group, reorder, leave out layer 0, and read prompts with every layer."""

HOSTILE = [
    ("0-5", "lp", "plan"),
    ("0 2 3 5", "lp", "full"),
    ("0 3 4", "lp", "plan"),
    ("5 4 3 2 1 0", "lp", "plan"),
    ("0 2 4 5 3 1", "lp", "plan"),
    ("0 (2|1) 4 5", "par", "plan"),
    ("0 (1|2) 4 5", "lp", "plan"),
    ("0 (1|2) 3 4", "par", "plan"),
]
"""Drafts with layers that a target skips, deeper than it, of the same layers in another order or form."""

PART = DraftVocabulary(torch.tensor([2, *range(10, 50)]))


def tokens(results: Sequence[GenerationResult]) -> list[tuple[int, ...]]:
    return [result.token_ids for result in results]


def check_bookkeeping(results: Sequence[GenerationResult]) -> None:
    """Each step yields what it accepted and one token more; the last may be cut short."""
    for result in results:
        yielded = 1 + sum(step.accepted + 1 for step in result.steps)
        last = result.steps[-1].accepted if result.steps else 0
        assert len(result.token_ids) <= yielded <= len(result.token_ids) + last
        assert all(0 <= step.accepted <= step.drafted for step in result.steps)
        assert len(result.from_draft) == len(result.token_ids)
        assert result.accepted - last <= sum(result.from_draft) <= result.accepted


def test_every_family_and_kind_of_draft(
    family_name: str, tiny_model: Any, plan_of: Any, asked: Any, generated: Any
) -> None:
    """A batch of unequal prompts that end unequally, past the sliding windows."""
    model, requests = tiny_model(family_name), asked([7, 8, 3, 6])
    expected = generated(model, requests)
    accepted = drafted = 0
    with Engine(model) as engine:
        for notation, form, prefill in DRAFTS:
            draft = engine.draft(plan_of(notation, form, prefill))
            results = engine.generate(requests, drafts=[draft], policy=FixedPolicy(3))
            assert tokens(results) == expected, notation
            check_bookkeeping(results)
            accepted += sum(result.accepted for result in results)
            drafted += sum(result.drafted for result in results)
    assert 0 < accepted < drafted, "nothing was put to the test"


@pytest.mark.slow
@pytest.mark.parametrize(("share", "vocabulary"), [(True, PART), (False, None)], ids=["shared", "apart"])
def test_every_family_alone_and_in_batches_at_length(
    family_name: str, share: bool, vocabulary: Any, tiny_model: Any, plan_of: Any, asked: Any, apart: Any
) -> None:
    model, requests = tiny_model(family_name), asked([12, 8, 10, 12])
    with Engine(model) as engine:
        expected = tokens(engine.generate(requests))
        for notation, form, prefill in DRAFTS:
            draft = engine.draft(plan_of(notation, form, prefill), vocabulary=vocabulary)
            draft = draft if share else apart(draft)
            assert tokens(engine.generate(requests, drafts=[draft], policy=FixedPolicy(3))) == expected, notation
            alone = [engine.generate([request], drafts=[draft], policy=FixedPolicy(3))[0] for request in requests[1:2]]
            assert tokens(alone) == expected[1:2], notation


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("vocabulary", [None, PART], ids=["whole vocabulary", "part"])
@pytest.mark.parametrize("name", ["llama", pytest.param("gemma2", marks=pytest.mark.slow)])
def test_with_and_without_sharing_and_draft_vocabulary(
    name: str, share: bool, vocabulary: Any, tiny_model: Any, plan_of: Any, asked: Any, generated: Any, apart: Any
) -> None:
    model, requests = tiny_model(name), asked([8, 4, 7, 5])
    expected = generated(model, requests)
    with Engine(model) as engine:
        for notation in ("0-2", "0 2 3 5"):
            draft = engine.draft(plan_of(notation), vocabulary=vocabulary)
            draft = draft if share else apart(draft)
            assert tokens(engine.generate(requests, drafts=[draft], policy=FixedPolicy(3))) == expected
            assert tokens(engine.generate(requests[:1], drafts=[draft], policy=FixedPolicy(3))) == expected[:1]


@pytest.mark.parametrize(
    ("target", "draft", "shared", "kept"),
    [
        (("0-5",), ("0-2",), 3, set()),
        (("0-5",), ("0 2 3 5",), 1, set()),
        (("0-5",), ("1 0 2 3 4 5",), 0, set()),
        (("0 2 4 5",), ("0 2 3 4",), 2, {3}),
        (("0-2",), ("0-5",), 3, {3, 4, 5}),
        (("0 (1|2) 3", "lp"), ("0 (1|2) 5", "lp"), 2, {5}),
        (("0 (1|2) 3", "lp"), ("0 (1|2) 5", "par"), 1, {5}),
        (("0 1 2", "lp"), ("0 1 (2|3)", "par"), 2, {3}),
    ],
    ids=str,
)
def test_what_draft_and_target_share(
    target: Any, draft: Any, shared: int, kept: set[int], tiny_model: Any, plan_of: Any
) -> None:
    with Engine(tiny_model("llama"), target=plan_of(*target)) as engine:
        found = engine.draft(plan_of(*draft))
    whole, aim = plan_of(*draft).stages, plan_of(*target).stages
    assert (found.shared, found.alone, found.rest) == (whole[:shared], whole[shared:], aim[shared:])
    assert found.kept == kept


def test_sharing_drafts_the_same_tokens_at_first(tiny_model: Any, plan_of: Any, asked: Any, apart: Any) -> None:
    """An early exit does the same work with and without sharing."""
    with Engine(tiny_model("llama")) as engine:
        shared = engine.draft(plan_of("0-3"))
        rounds = [
            [result.steps for result in engine.generate(asked(20), drafts=[draft], policy=FixedPolicy(3))]
            for draft in (shared, apart(shared))
        ]
    assert rounds[0] == rounds[1]


@pytest.mark.parametrize("target", TARGETS, ids=" ".join)
@pytest.mark.parametrize("share", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_every_target_under_hostile_drafts(
    target: tuple[str, str, str], share: bool, tiny_model: Any, plan_of: Any, asked: Any, apart: Any
) -> None:
    requests = asked([4, 3, 6, 5])
    with Engine(tiny_model("llama"), target=plan_of(*target)) as engine:
        expected = tokens(engine.generate(requests))
        for plan in HOSTILE:
            draft = engine.draft(plan_of(*plan))
            draft = draft if share else apart(draft)
            assert tokens(engine.generate(requests, drafts=[draft], policy=FixedPolicy(3))) == expected, plan


@pytest.mark.parametrize("name", ["gemma3", "phi3", "smollm3"])
@pytest.mark.parametrize("target", [("0 2 4 5", "lp", "full"), ("1-4", "lp", "plan"), ("4 5 0 1", "lp", "plan")])
def test_drafts_do_not_touch_the_targets_prompt(
    name: str, target: tuple[str, str, str], tiny_model: Any, plan_of: Any, asked: Any
) -> None:
    """Drafts that keep entries of their own read the prompt; the target's entries of it must stay."""
    requests = asked(5)
    with Engine(tiny_model(name), target=plan_of(*target)) as engine:
        expected = tokens(engine.generate(requests))
        for notation in ("0-5", "3 1 2 5"):
            draft = engine.draft(plan_of(notation))
            assert draft.kept, "the draft needs layers that the target skips"
            assert tokens(engine.generate(requests, drafts=[draft], policy=FixedPolicy(3))) == expected, notation


@pytest.mark.parametrize(
    "plan",
    [("0 (1+2) 3-5", "lp", "plan"), ("0 1 (2|3) 5", "par", "plan"), ("0 2 4 5", "lp", "full"), ("1-5", "lp", "plan")],
    ids=" ".join,
)
def test_a_model_with_a_plan_applied(
    plan: tuple[str, str, str], tiny_model: Any, plan_of: Any, asked: Any, generated: Any
) -> None:
    model, requests = apply(tiny_model("llama"), plan_of(*plan)), asked([5, 3, 6, 4])
    expected = generated(model, requests)
    with Engine(model) as engine:
        assert tokens(engine.generate(requests)) == expected
        for notation in ("0-2", "0 2 3 5", "0-5", "5 2 1 0"):
            draft = engine.draft(plan_of(notation))
            assert tokens(engine.generate(requests, drafts=[draft], policy=FixedPolicy(3))) == expected, notation
    assert generated(model, requests) == expected


def test_a_draft_may_use_the_targets_merged_layers_but_no_others(tiny_model: Any, plan_of: Any, asked: Any) -> None:
    model, requests = apply(tiny_model("llama"), plan_of("0 (1+2) 3-5")), asked(10)
    with Engine(model) as engine:
        expected = tokens(engine.generate(requests))
        draft = engine.draft(plan_of("0 (1+2) 4 5"))
        assert (len(draft.shared), draft.kept) == (2, frozenset())
        assert tokens(engine.generate(requests, drafts=[draft], policy=FixedPolicy(3))) == expected
        assert engine.draft(plan_of("0-2 5")).kept == {2}, "the merged layer's entries are layer 1's"
        with pytest.raises(PlanError, match="merges layers"):
            engine.draft(plan_of("0 (3+4) 5"))


def test_a_draft_that_is_the_target_is_always_right(tiny_model: Any, plan_of: Any, asked: Any, apart: Any) -> None:
    with Engine(tiny_model("gemma2")) as engine:
        shared = engine.draft(plan_of("0-5"))
        for draft in (shared, apart(shared)):
            results = engine.generate(asked(21), drafts=[draft], policy=FixedPolicy(4))
            assert all(result.acceptance == 1 for result in results)
            assert all(len(result.steps) == 4 for result in results)
            assert all(sum(result.from_draft) == 16 for result in results)


def test_sequences_finish_in_any_order(tiny_model: Any, plan_of: Any, asked: Any) -> None:
    with Engine(tiny_model("llama")) as engine:
        draft = engine.draft(plan_of("0-4"))
        longest = tokens(engine.generate(asked(5)))
        for order in sorted({*itertools.permutations((1, 2, 2, 5))}):
            results = engine.generate(asked(order), drafts=[draft], policy=FixedPolicy(1))
            assert tokens(results) == [text[:length] for text, length in zip(longest, order, strict=True)]
            assert all(result.finish_reason == "length" for result in results)


def test_an_end_token_inside_a_draft(tiny_model: Any, plan_of: Any, asked: Any, generated: Any) -> None:
    """Whichever token of a drafted run ends the text, nothing comes after it."""
    model = tiny_model("llama")
    longest = generated(model, asked(7))
    with Engine(model) as engine:
        draft = engine.draft(plan_of("0-5"))
        for end in {longest[0][0], longest[1][2], longest[2][4], longest[3][5]}:
            expected = generated(model, asked(7), eos=end)
            for drafts in ([], [draft]):
                results = engine.generate(asked(7, ignore_end=False), drafts=drafts, policy=FixedPolicy(3))
                assert tokens(results) == expected
                for result in results:
                    assert (result.finish_reason == "stop") == (result.token_ids[-1] == end)
                    assert end not in result.token_ids[:-1]


@pytest.mark.parametrize("share", [True, False])
def test_nothing_is_drafted_beyond_the_end(share: bool, tiny_model: Any, plan_of: Any, asked: Any, apart: Any) -> None:
    """With a draft that is never wrong, all that is drafted is written: at most the target's last token is not."""
    with Engine(tiny_model("llama")) as engine:
        shared, policy = engine.draft(plan_of("0-5")), FixedPolicy(8)
        draft = shared if share else apart(shared)
        ends = frozenset(text[5] for text in tokens(engine.generate(asked(12))))
        requests = asked(24, stop_token_ids=ends)
        together = engine.generate(requests, drafts=[draft], policy=policy)
        alone = [engine.generate([request], drafts=[draft], policy=policy)[0] for request in requests]
    assert len({len(result.token_ids) for result in alone}) > 1
    for results in (together, alone):
        assert all(result.accepted == result.drafted for result in results)
        assert all(result.drafted + len(result.steps) <= len(result.token_ids) for result in results)
    assert sum(result.drafted for result in together) > 0
    assert [result.drafted for result in together] == [result.drafted for result in alone]


class Scripted:
    """A policy that walks through given rounds: (index of the draft, length), or None for a plain step.

    It cuts a round short where the draft gives the first sequence's token less probability than `least`.
    """

    wants_confidence = True
    wants_shadow = True

    def __init__(self, rounds: Sequence[tuple[int, int] | None], least: float) -> None:
        self.rounds, self.least = itertools.cycle(rounds), least
        self.seen: list[Round] = []

    def begin(self, batch: int) -> tuple[int, int] | None:
        return next(self.rounds)

    def goes_on(self, drafted: int, confidences: Sequence[Sequence[float]]) -> bool:
        assert all(len(own) == drafted and all(0 <= value <= 1 for value in own) for own in confidences)
        return confidences[0][-1] >= self.least

    def note(self, step: Round) -> None:
        self.seen.append(step)


@pytest.mark.parametrize("length", [1, 32, 100])
def test_any_draft_length(length: int, tiny_model: Any, plan_of: Any, asked: Any) -> None:
    """Up to more than a round drafts at most, and far more than there is room for."""
    policy = Scripted([(0, length), (1, length)], least=0.0)
    with Engine(tiny_model("mistral")) as engine:
        requests = asked([37, 1, 2, 3])
        expected = tokens(engine.generate(requests))
        drafts = [engine.draft(plan_of(notation)) for notation in ("0-4", "0-5")]  # rarely right, and always
        results = engine.generate(requests, drafts=drafts, policy=policy)
    assert tokens(results) == expected
    check_bookkeeping(results)
    assert max(step.drafted for step in policy.seen) == min(length, 32)


@pytest.mark.parametrize("target", [TARGETS[0], TARGETS[2]], ids=" ".join)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_drafts_that_take_turns_with_plain_steps(
    target: tuple[str, str, str], temperature: float, tiny_model: Any, plan_of: Any, asked: Any
) -> None:
    """Several drafts at once, some with entries of their own, and rounds that the policy cuts short."""
    requests = asked([20, 14, 9, 17], sampling_params=SamplingParams(temperature=temperature, seed=1))
    with Engine(tiny_model("llama"), target=plan_of(*target)) as engine:
        drafts = [engine.draft(plan_of(notation)) for notation in ("0-2", "0 3 4", "0-5", "0 2 4 5")]
        policy = Scripted([None, (0, 3), (1, 4), None, (2, 2), (3, 5), (0, 0)], least=0.1)
        results = engine.generate(requests, drafts=drafts, policy=policy)
        if temperature == 0:
            assert tokens(results) == tokens(engine.generate(requests))
    assert [len(result.token_ids) for result in results] == [20, 14, 9, 17]
    assert {step.draft for step in policy.seen} == {None, 0, 1, 2, 3}
    itself = [draft.plan.stages for draft in drafts].index(plan_of(*target).stages)
    for step in policy.seen:
        assert all(0 <= accepted <= step.drafted for accepted in step.accepted)
        assert (step.draft is None) == (step.drafted == 0)
        assert all(0 <= right <= told for right, told in step.shadow)
        if temperature == 0:  # of all tokens that came, the target would have drafted each
            assert step.shadow[itself] == (sum(step.accepted) + len(step.accepted),) * 2


@pytest.mark.parametrize("notation", ["0-5", "1 (2|0) 5"])
def test_a_draft_sees_the_tokens_that_came_without_it(
    notation: str, tiny_model: Any, plan_of: Any, asked: Any, apart: Any
) -> None:
    """Two drafts that do what the target does, on entries of their own, are always right, whoever has had turns."""
    rounds = [None, (0, 3), None, None, (1, 2), (0, 1), (1, 4), (0, 2), (2, 3), (1, 1)]
    with Engine(tiny_model("gemma3"), target=plan_of(notation)) as engine:
        twins = [
            apart(engine.draft(plan_of(notation))),
            apart(engine.draft(plan_of(notation), vocabulary=DraftVocabulary(torch.arange(64)))),
        ]
        drafts, policy = [*twins, engine.draft(plan_of("0 3 4"))], Scripted(rounds, least=0.0)
        results = engine.generate(asked([40, 9, 31, 22]), drafts=drafts, policy=policy)
        assert tokens(results) == tokens(engine.generate(asked([40, 9, 31, 22])))
    for step in policy.seen:
        assert step.draft == 2 or set(step.accepted) == {step.drafted}


def test_prompts_read_in_pieces(
    tiny_model: Any, plan_of: Any, asked: Any, generated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("truedepth.engine.loop.decoder.PROMPT_CHUNK", 4)
    for name, target in (("gemma3", ("0 2 4 5", "lp", "full")), ("llama", ("1 2 (3|4)", "par")), ("llama", ("0-5",))):
        model = apply(tiny_model(name), plan_of(*target))
        expected = generated(model, asked(4))
        with Engine(model) as engine:
            assert tokens(engine.generate(asked(4))) == expected
            draft = engine.draft(plan_of("0 3 4"))
            assert tokens(engine.generate(asked(4), drafts=[draft], policy=FixedPolicy(3))) == expected


def test_the_test_notices_a_wrong_rule(
    tiny_model: Any, plan_of: Any, asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generous(drafted: Any, chosen: Any) -> Any:
        return accept_greedy(drafted, torch.cat([drafted, chosen[:, -1:]], 1))

    with Engine(tiny_model("llama")) as engine:
        expected = tokens(engine.generate(asked(12)))
        monkeypatch.setattr("truedepth.engine.sampling.batch_sampler.accept_greedy", generous)
        assert (
            tokens(engine.generate(asked(12), drafts=[engine.draft(plan_of("0-2"))], policy=FixedPolicy(3))) != expected
        )


def test_drafts_that_do_not_fit(tiny_model: Any, plan_of: Any) -> None:
    with Engine(tiny_model("llama")) as engine:
        for depth in (5, 7):
            with pytest.raises(PlanError, match=f"is for {depth} layers, but the model has 6"):
                engine.draft(DepthPlan.full(depth))
        with pytest.raises(PlanError, match="merges layers"):
            engine.draft(plan_of("0 (1+2) 3"))


def test_what_the_target_may_be(tiny_model: Any, plan_of: Any) -> None:
    with pytest.raises(PlanError, match="is for 5 layers, but the model has 6"):
        Engine(tiny_model("llama"), target=DepthPlan.full(5))
    with pytest.raises(PlanError, match="apply"):
        Engine(tiny_model("llama"), target=plan_of("0 (1+2) 3"))
    merged = apply(tiny_model("llama"), plan_of("0 (1+2) 3"))
    with pytest.raises(PlanError, match="apply"):  # its layer 1 is no longer its own
        Engine(merged, target=plan_of("0-5"))
    with Engine(merged, target=plan_of("0 (1+2) 5")) as engine:
        assert engine.generate([Request([5, 6], 2)])
