"""What is looked up in texts is held against real drafting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary
from truedepth.engine.drafts.policy import FixedPolicy
from truedepth.engine.engine import Engine
from truedepth.engine.sampling.request import Request
from truedepth.evaluation.drafting import read_target_texts, write_texts
from truedepth.plan import DepthPlan

LAYERS, PROMPT, NEW = 6, 20, 30


def texts_of(engine: Engine, token_ids: Callable[..., Any], count: int = 2) -> Any:
    return write_texts(engine, token_ids(count, PROMPT).tolist(), NEW)


def accepted_by_drafting(
    engine: Engine, prompt: Any, plan: DepthPlan, length: int, vocabulary: Any = None
) -> list[int]:
    draft = engine.draft(plan, vocabulary=vocabulary)
    request = Request(prompt, max_new_tokens=NEW)
    (result,) = engine.generate([request], drafts=[draft], policy=FixedPolicy(length))
    return [step.accepted for step in result.steps if step.drafted == length]


def looked_up(engine: Engine, text: Any, plan: DepthPlan, length: int) -> list[int]:
    (by_size,) = read_target_texts(engine, [text]).agreements([plan])
    return by_size[None].rounds(length)


@pytest.mark.parametrize(("notation", "length"), [("0-2", 3), ("0 2 4 5", 1)])
def test_drafting_accepts_what_is_looked_up(
    notation: str, length: int, family_name: str, tiny_model: Callable[..., Any], token_ids: Callable[..., Any]
) -> None:
    """Of an exit all tokens, of another plan the first of each round."""
    plan = DepthPlan.parse(notation, LAYERS)
    with Engine(tiny_model(family_name, eos_token_id=None)) as engine:
        text = texts_of(engine, token_ids, 1)[0]
        real = accepted_by_drafting(engine, text[0], plan, length)
        rounds = looked_up(engine, text, plan, length)
    # One of the two may know a last round that the end of the text cuts short for the other.
    assert rounds[: len(real)] == real[: len(rounds)]
    assert len(rounds) >= 4


@pytest.mark.parametrize("form", ["lp", "par"])
def test_groups_accept_what_is_looked_up(
    form: Any, tiny_model: Callable[..., Any], token_ids: Callable[..., Any]
) -> None:
    plan = DepthPlan.parse("0 (1|2) 3 (4|5)", LAYERS, form)
    with Engine(tiny_model("llama", eos_token_id=None)) as engine:
        for text in texts_of(engine, token_ids, 4):
            real = accepted_by_drafting(engine, text[0], plan, 1)
            rounds = looked_up(engine, text, plan, 1)
            assert rounds[: len(real)] == real[: len(rounds)]


def test_a_draft_vocabulary_accepts_what_is_looked_up(
    tiny_model: Callable[..., Any], token_ids: Callable[..., Any]
) -> None:
    plan = DepthPlan.of_layers(range(5), LAYERS)
    with Engine(tiny_model("llama")) as engine:
        text = texts_of(engine, token_ids, 1)[0]
        frequent = [token for token in dict.fromkeys(text[1]) if token > 2][:8]
        parts = [DraftVocabulary(torch.tensor([2, *frequent])), DraftVocabulary(torch.arange(64).flip(0))]
        (by_size,) = read_target_texts(engine, [text], parts).agreements([plan])
        for size, part in ((len(frequent) + 1, parts[0]), (64, parts[1])):
            real = accepted_by_drafting(engine, text[0], plan, 2, part)
            rounds = by_size[size].rounds(2)
            assert rounds[: len(real)] == real[: len(rounds)]
        assert by_size[64] == by_size[None]
        assert by_size[len(frequent) + 1] != by_size[None]


def test_texts_of_different_lengths_do_not_touch_each_other(
    tiny_model: Callable[..., Any], token_ids: Callable[..., Any]
) -> None:
    plans = [DepthPlan.parse(notation, LAYERS) for notation in ("0-4", "0-2 4 5", "0 1 3-5", "0-2 4 5", "1-5")]
    with Engine(tiny_model("llama")) as engine:
        (first, written), (second, other) = texts_of(engine, token_ids)
        texts = [(first, written), (second, other[:7])]
        together = read_target_texts(engine, texts).agreements(plans)
        for plan, agreement in zip(plans, together, strict=True):
            alone = [read_target_texts(engine, [text]).agreements([plan])[0][None].rows[0] for text in texts]
            assert agreement[None].rows == tuple(alone)
        assert [len(row) for row in together[0][None].rows] == [NEW - 1, 6]


def test_losses_are_of_the_tokens_that_the_model_wrote(
    tiny_model: Callable[..., Any], token_ids: Callable[..., Any]
) -> None:
    model = tiny_model("llama")
    with Engine(model) as engine:
        prompt, written = texts_of(engine, token_ids, 1)[0]
        evidence = read_target_texts(engine, [(prompt, written)])
        loss = evidence.losses([DepthPlan.full(LAYERS)])[0]
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *written]])).logits[0, PROMPT:-1]
    assert loss == pytest.approx(cross_entropy(logits, torch.tensor(written[1:])).item(), rel=1e-4)
    assert evidence.known_losses == {"0-5": loss}


def test_influence_is_of_layers_that_do_nothing_none(
    tiny_model: Callable[..., Any], token_ids: Callable[..., Any]
) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            model.model.layers[4].get_submodule(name).weight.zero_()
    with Engine(model) as engine:
        evidence = read_target_texts(engine, texts_of(engine, token_ids))
        influence, distance = evidence.block_influence(), evidence.angular_distance(1)
    assert influence[4] == pytest.approx(0, abs=1e-6)
    assert min(range(LAYERS), key=distance.__getitem__) == 4
    assert min(value for layer, value in enumerate(influence) if layer != 4) > 1e-3
