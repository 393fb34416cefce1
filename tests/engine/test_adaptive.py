from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from truedepth.engine.drafts.acceptance_estimate import AcceptanceEstimate
from truedepth.engine.drafts.adaptive import AdaptivePolicy
from truedepth.engine.drafts.policy import FixedPolicy, Round, SpeculationPolicy
from truedepth.engine.drafts.round_costs import RoundCost
from truedepth.engine.engine import Engine
from truedepth.engine.sampling.request import Request
from truedepth.errors import UsageError
from truedepth.plan import DepthPlan

PLAIN_SECONDS = 0.02

Token = Callable[[random.Random, float], tuple[float, float]]
"""From the position in the text, in tokens: a drafted token's confidence, and the chance that it is taken."""


def constant(chance: float) -> Token:
    """Confidence says nothing."""
    return lambda rng, _: (rng.random(), chance)


def mixed(easy: float, high: float, low: float) -> Token:
    """Confidence tells easy tokens from hard ones."""

    def token(rng: random.Random, _: float) -> tuple[float, float]:
        return (0.97, high) if rng.random() < easy else (0.45, low)

    return token


def changing(before: float, after: float, at: float) -> Token:
    return lambda rng, position: (rng.random(), before if position < at else after)


@dataclass(frozen=True)
class SimulatedDraft:
    """What drafting with it takes, in plain steps; `own` is what it runs beside the target's layers."""

    token: Token
    shared: float = 0.2
    head: float = 0.1
    own: float = 0.0
    widening: float = 0.05

    def seconds(self, drafted: int) -> tuple[float, float]:
        """Of drafting and of verifying, as `Decoder` times them."""
        again = drafted + 1 if self.own else drafted
        draft = (drafted + 1) * self.shared + drafted * self.head + again * self.own
        return draft * PLAIN_SECONDS, (1 - self.shared + self.widening * drafted) * PLAIN_SECONDS


EXIT = SimulatedDraft(constant(0.0))
DEEPER_EXIT = SimulatedDraft(constant(0.0), shared=0.27, head=0.21)
SKIPPING = SimulatedDraft(constant(0.0), shared=0.0, head=0.2, own=0.55)


def with_token(draft: SimulatedDraft, token: Token) -> SimulatedDraft:
    return SimulatedDraft(token, draft.shared, draft.head, draft.own, draft.widening)


class World:
    """Drives a policy as `Decoder` does; counts true seconds, and tells the policy noisy ones."""

    def __init__(self, drafts: Sequence[SimulatedDraft], batch: int = 1, seed: int = 0, answers_shadow: bool = True):
        self.drafts, self.batch, self.answers_shadow = drafts, batch, answers_shadow
        self.rng = random.Random(seed)
        self.tokens = self.seconds = 0.0
        self.used: Counter[int | None] = Counter()
        self.lengths: list[int] = []
        self.shadows = 0

    def noisy(self, seconds: float) -> float:
        return seconds * math.exp(self.rng.gauss(0, 0.1)) * (4 if self.rng.random() < 0.02 else 1)

    def speed(self, policy: SpeculationPolicy, until: float) -> float:
        """Decode until so many tokens a sequence; how much faster that was than plain decoding."""
        tokens, seconds = self.tokens, self.seconds
        while self.tokens < until:
            self.step(policy)
        return (self.tokens - tokens) * PLAIN_SECONDS / (self.seconds - seconds)

    def step(self, policy: SpeculationPolicy) -> None:
        begun = policy.begin(self.batch)
        shadowed = policy.wants_shadow
        if begun is None:
            draft, drafted, accepted, confidences = None, 0, (0,) * self.batch, ()
            seconds = 0.0, PLAIN_SECONDS
        else:
            draft, most = begun
            confidences, right = self.draft(self.drafts[draft], most, policy)
            drafted = len(right[0])
            accepted = tuple([*own, False].index(False) for own in right)
            seconds = self.drafts[draft].seconds(drafted)
            self.lengths.append(drafted)
        shadow = self.shadow(sum(accepted) + self.batch) if shadowed and self.answers_shadow else ()
        timed = self.noisy(seconds[0]), self.noisy(seconds[1])
        policy.note(Round(draft, drafted, accepted, confidences, *timed, shadow))
        self.used[draft] += 1
        self.shadows += bool(shadow)
        self.seconds += sum(seconds) + bool(shadow) * sum(draft.head for draft in self.drafts) * PLAIN_SECONDS
        self.tokens += 1 + sum(accepted) / self.batch

    def draft(self, draft: SimulatedDraft, most: int, policy: SpeculationPolicy) -> tuple[Any, list[list[bool]]]:
        confidences: list[list[float]] = [[] for _ in range(self.batch)]
        right: list[list[bool]] = [[] for _ in range(self.batch)]
        while True:
            for own, taken in zip(confidences, right, strict=True):
                confidence, chance = draft.token(self.rng, self.tokens + len(taken))
                own.append(confidence)
                taken.append(self.rng.random() < chance)
            shown = tuple(map(tuple, confidences))
            if len(right[0]) == most or not policy.goes_on(len(right[0]), shown):
                return shown, right

    def shadow(self, looked: int) -> tuple[tuple[int, int], ...]:
        def right(draft: SimulatedDraft) -> int:
            return sum(self.rng.random() < draft.token(self.rng, self.tokens)[1] for _ in range(looked))

        return tuple((0, 0) if draft.own else (right(draft), looked) for draft in self.drafts)


def mean_speed(drafts: Sequence[SimulatedDraft], until: float, batch: int = 1, seeds: int = 2) -> float:
    speeds = [World(drafts, batch, seed).speed(AdaptivePolicy(len(drafts)), until) for seed in range(seeds)]
    return sum(speeds) / seeds


def best_fixed_speed(drafts: Sequence[SimulatedDraft], batch: int = 1) -> float:
    lengths = (1, 2, 3, 4, 6, 8, 12)
    return max(
        World(drafts, batch).speed(FixedPolicy(length, index), 800)
        for index in range(len(drafts))
        for length in lengths
    )


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("draft", [EXIT, DEEPER_EXIT, SKIPPING])
@pytest.mark.parametrize("tokens", [300, 3000])
def test_draft_that_is_never_right_costs_at_most_three_percent(draft: SimulatedDraft, tokens: int, batch: int) -> None:
    for seed in range(5 if tokens == 300 else 2):
        assert World([draft], batch, seed).speed(AdaptivePolicy(), tokens) > 0.97


@pytest.mark.parametrize("chance", [0.1, 0.3, 0.5, 0.6])
@pytest.mark.parametrize("draft", [DEEPER_EXIT, SKIPPING])
def test_draft_that_does_not_pay_costs_at_most_three_percent(draft: SimulatedDraft, chance: float) -> None:
    assert mean_speed([with_token(draft, constant(chance))], 2000) > 0.97


def test_several_bad_drafts_cost_no_more_than_one() -> None:
    for seed in range(4):
        assert World([EXIT, DEEPER_EXIT, SKIPPING], seed=seed).speed(AdaptivePolicy(3), 300) > 0.97


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("draft", [EXIT, DEEPER_EXIT], ids=["cheap", "dear"])
@pytest.mark.parametrize("chance", [0.5, 0.7, 0.9])
def test_is_nearly_as_fast_as_the_best_fixed_length(draft: SimulatedDraft, chance: float, batch: int) -> None:
    drafts = [with_token(draft, constant(chance))]
    assert mean_speed(drafts, 2000, batch) > 0.92 * max(1.0, best_fixed_speed(drafts, batch))


def test_telling_confidence_beats_every_fixed_length() -> None:
    drafts = [with_token(EXIT, mixed(0.7, 0.98, 0.1))]
    assert mean_speed(drafts, 2000) > 1.03 * best_fixed_speed(drafts)


def test_confidence_serves_a_batch_too() -> None:
    drafts = [with_token(EXIT, mixed(0.7, 0.98, 0.1))]
    assert mean_speed(drafts, 2000, batch=4) > 0.97 * best_fixed_speed(drafts, batch=4)


@pytest.mark.parametrize("good", [0, 1, 2])
def test_uses_the_best_of_several_exits(good: int) -> None:
    depths = (0.13, 0.27, 0.4)
    drafts = [
        SimulatedDraft(constant(0.9 if index == good else 0.3), shared=depth) for index, depth in enumerate(depths)
    ]
    world = World(drafts)
    speed = world.speed(AdaptivePolicy(3), 2500)
    assert max((0, 1, 2), key=lambda index: world.used[index]) == good
    assert speed > 0.9 * best_fixed_speed(drafts)
    assert 0 < world.shadows < 0.15 * sum(world.used.values())


def test_uses_the_better_of_two_drafts_that_have_no_shadow() -> None:
    drafts = [SimulatedDraft(constant(chance), shared=0.0, head=0.1, own=0.15) for chance in (0.3, 0.9)]
    world = World(drafts)
    assert world.speed(AdaptivePolicy(2), 2500) > 0.9 * best_fixed_speed(drafts)
    assert world.used[1] > 4 * world.used[0]


def test_switches_exits_when_another_becomes_better() -> None:
    drafts = [
        SimulatedDraft(changing(0.9, 0.1, 1000), shared=0.15),
        SimulatedDraft(changing(0.1, 0.9, 1000), shared=0.25),
    ]
    world, policy = World(drafts), AdaptivePolicy(2)
    world.speed(policy, 1000)
    world.speed(policy, 1400)
    world.used.clear()
    assert world.speed(policy, 2500) > 1.3
    assert world.used[1] > 4 * world.used[0]


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("answers_shadow", [True, False])
@pytest.mark.parametrize("draft", [EXIT, SimulatedDraft(EXIT.token, shared=0.0, own=0.2)], ids=["exit", "own layers"])
def test_turns_on_again_when_acceptance_becomes_good(draft: SimulatedDraft, answers_shadow: bool, batch: int) -> None:
    drafts = [with_token(draft, changing(0.0, 0.9, 1000))]
    world, policy = World(drafts, batch, answers_shadow=answers_shadow), AdaptivePolicy()
    assert world.speed(policy, 1000) > 0.97
    world.speed(policy, 1600)
    assert world.speed(policy, 2600) > 1.15


def test_turns_off_soon_when_acceptance_becomes_bad() -> None:
    world, policy = World([with_token(EXIT, changing(0.9, 0.0, 1000))]), AdaptivePolicy()
    assert world.speed(policy, 1000) > 1.4
    assert world.speed(policy, 1300) > 0.95
    assert world.speed(policy, 2300) > 0.98


def test_looks_again_ever_more_rarely_while_nothing_pays() -> None:
    world, policy = World([SKIPPING]), AdaptivePolicy()
    world.speed(policy, 400)
    early = sum(world.used.values()) - world.used[None]
    world.used.clear()
    world.speed(policy, 1200)
    assert 0 < sum(world.used.values()) - world.used[None] < 2 * early + 2


def test_keeps_what_it_learnt_for_batch_sizes_apart() -> None:
    """Rounds that pay for one sequence need not for four: verifying may widen less cheaply."""
    policy = AdaptivePolicy()
    single = World([SimulatedDraft(constant(0.8))], batch=1)
    four = World([SimulatedDraft(constant(0.8), widening=1.5)], batch=4)
    for until in range(100, 1600, 100):
        single.speed(policy, until)
        four.speed(policy, until)
    single.used.clear()
    four.used.clear()
    single.speed(policy, 2100)
    four.speed(policy, 2100)
    assert single.used[0] > 3 * single.used[None]
    assert four.used[None] > 3 * four.used[0]


def test_same_observations_give_same_decisions() -> None:
    drafts = [with_token(EXIT, constant(0.7)), with_token(DEEPER_EXIT, constant(0.8))]
    worlds = [World(drafts, 2), World(drafts, 2)]
    for world in worlds:
        world.speed(AdaptivePolicy(2), 500)
    assert worlds[0].used == worlds[1].used
    assert worlds[0].lengths == worlds[1].lengths


def test_first_steps_are_plain_and_first_rounds_short() -> None:
    world, policy = World([with_token(EXIT, constant(0.9))]), AdaptivePolicy()
    for _ in range(4):
        world.step(policy)
    assert world.used == {None: 4}
    world.step(policy)
    assert world.lengths == [1]


@given(
    st.lists(
        st.tuples(
            st.integers(1, 5),
            st.floats(1e-6, 10),
            st.floats(1e-6, 10),
            st.integers(0, 1 << 30),
            st.booleans(),
        ),
        max_size=60,
    ),
    st.integers(1, 3),
    st.integers(1, 20),
)
@settings(max_examples=60)
def test_whatever_is_seen_choices_are_within_bounds(
    steps: list[tuple[int, float, float, int, bool]], num_drafts: int, longest: int
) -> None:
    policy = AdaptivePolicy(num_drafts, longest)
    for batch, draft_seconds, verify_seconds, seed, heeds in steps:
        rng = random.Random(seed)
        begun = policy.begin(batch)
        draft, drafted = None, 0
        confidences: tuple[tuple[float, ...], ...] = ()
        if begun is not None:
            draft, most = begun
            assert 0 <= draft < num_drafts
            assert 1 <= most <= longest
            if heeds:  # the decoder may have no room to draft
                drafted = rng.randint(1, most)
                confidences = tuple(tuple(rng.random() for _ in range(drafted)) for _ in range(batch))
                assert policy.goes_on(drafted, confidences) in (True, False)
            else:
                draft = None
        accepted = tuple(rng.randint(0, drafted) for _ in range(batch))
        shadow = tuple((rng.randint(0, batch), batch) for _ in range(num_drafts)) if policy.wants_shadow else ()
        policy.note(Round(draft, drafted, accepted, confidences, draft_seconds, verify_seconds, shadow))


@given(st.lists(st.tuples(st.integers(0, 64), st.integers(1, 64)), max_size=50), st.floats(0, 1))
def test_acceptance_stays_a_probability(rounds: list[tuple[int, int]], confidence: float) -> None:
    acceptance = AcceptanceEstimate()
    for taken, seen in rounds:
        acceptance.see(min(taken, seen), seen)
        acceptance.see_confidence(confidence, taken >= seen)
        assert 0 < acceptance.acceptance_rate < 1
        assert 0 <= acceptance.of(confidence) <= 1


def test_acceptance_tells_confidences_apart() -> None:
    acceptance, rng = AcceptanceEstimate(), random.Random(0)
    for _ in range(400):
        sure = rng.random() < 0.5
        taken = rng.random() < (0.95 if sure else 0.2)
        acceptance.see(taken, 1)
        acceptance.see_confidence(0.99 if sure else 0.1, taken)
    assert acceptance.of(0.99) > 0.8
    assert acceptance.of(0.1) < 0.35
    assert acceptance.acceptance_rate == pytest.approx(0.575, abs=0.2)


def test_round_cost_is_the_line_through_the_rounds_that_nothing_disturbed() -> None:
    cost, rng = RoundCost((1.0, 0.4)), random.Random(0)
    for index in range(40):
        tokens = 1 + index % 5
        seconds = 0.02 + 0.006 * tokens
        cost.see(tokens, seconds * (5 if rng.random() < 0.1 else 1), plain=0.02)
    base, each = cost.line(plain=0.02)
    assert base == pytest.approx(0.02, rel=0.05)
    assert each == pytest.approx(0.006, rel=0.1)


def test_round_cost_is_a_guess_before_the_first_round() -> None:
    assert RoundCost((1.0, 0.4)).line(plain=2.0) == (2.0, 0.8)


@pytest.mark.parametrize("arguments", [{"num_drafts": 0}, {"longest": 0}])
def test_refuses_nothing_to_pace(arguments: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="at least"):
        AdaptivePolicy(**arguments)


@pytest.mark.parametrize("batch", [1, 3])
def test_greedy_text_is_that_of_plain_decoding(
    tiny_model: Callable[..., Any], token_ids: Callable[..., Any], batch: int
) -> None:
    requests = [
        Request(prompt_ids=row, max_new_tokens=40 - 9 * index, ignore_end=True)
        for index, row in enumerate(token_ids(batch, 7).tolist())
    ]
    plans = [DepthPlan.parse(text, num_layers=6) for text in ("0-1", "0-4", "0-3 5")]
    with Engine(tiny_model("llama")) as engine:
        plain = engine.generate(requests)
        drafts = [engine.draft(plan) for plan in plans]
        policy = AdaptivePolicy(len(drafts))
        drafted = 0  # in the second round perhaps none, where drafting took long in the first
        for _ in range(2):
            adaptive = engine.generate(requests, drafts=drafts, policy=policy)
            assert [result.token_ids for result in adaptive] == [result.token_ids for result in plain]
            drafted += sum(result.drafted for result in adaptive)
    assert drafted
