"""What decoding holds: caches while it runs, nothing afterwards."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
import torch

from truedepth.engine.drafts.policy import FixedPolicy
from truedepth.engine.engine import Engine
from truedepth.engine.loop import decoder
from truedepth.engine.runner.caches import KVCache
from truedepth.engine.sampling.logits_sampler import SamplingParams
from truedepth.engine.sampling.request import Request
from truedepth.errors import DecodingError
from truedepth.plan import DepthPlan

Alive = Callable[[], list[KVCache]]


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> Iterator[Alive]:
    """`alive()`: the caches that decoding has made and not let go of. Without help of the garbage collector."""
    made: list[weakref.ref[KVCache]] = []

    def make(rows: int, capacity: int) -> KVCache:
        cache = KVCache(rows, capacity)
        made.append(weakref.ref(cache))
        return cache

    monkeypatch.setattr(decoder, "KVCache", make)
    gc.disable()
    yield lambda: [cache for ref in made if (cache := ref()) is not None]
    gc.enable()


def tensors() -> int:
    gc.collect()
    return sum(issubclass(type(held), torch.Tensor) for held in gc.get_objects())


def one_layer(rows: int, capacity: int) -> int:
    """Bytes of the keys and values of one layer of a tiny llama."""
    return 2 * rows * capacity * 2 * 8 * 4


def test_cancelling_frees_the_caches_at_once(alive: Alive, tiny_model: Any, plan_of: Any, asked: Any) -> None:
    with Engine(tiny_model("llama"), target=plan_of("0 2 4 5")) as engine:
        for drafts in ([], [engine.draft(plan_of("0 3 4"))]):
            assert not alive()
            sequences = engine.sequences(asked(20))
            steps = engine.steps(sequences, drafts=drafts, policy=FixedPolicy(3))
            next(steps)
            next(steps)
            assert sum(cache.bytes for cache in alive()) >= 4 * one_layer(4, 31)
            steps.close()
            assert not alive()
            assert all(0 < len(sequence.result().token_ids) < 20 for sequence in sequences)
            steps = engine.steps(engine.sequences(asked(20)), drafts=drafts, policy=FixedPolicy(3))
            next(steps)
            del steps  # as when the consumer of a stream goes away
            assert not alive()


def test_ending_and_failing_free_the_caches_too(alive: Alive, tiny_model: Any, asked: Any) -> None:
    model = tiny_model("llama")
    with Engine(model) as engine:
        engine.generate(asked(3))
        assert not alive()
        with torch.no_grad():
            model.model.layers[4].input_layernorm.weight[3] = torch.nan
        with pytest.raises(DecodingError):
            engine.generate(asked(3))
        gc.collect()  # the error has held the frames that it came through
        assert not alive()


def test_caches_are_as_large_as_the_longest_sequence_asks(
    alive: Alive, tiny_model: Any, plan_of: Any, asked: Any
) -> None:
    """And no larger: drafting adds the most that a round may look ahead, layers that the draft keeps, and no more."""
    longest = 11 + 20
    room = longest + decoder.MOST_DRAFTED + 1
    for target, draft, layers in (
        (("0-5",), None, 6),
        (("0-5",), "0-2", 6),
        (("0-5",), "0 2 3 5", 6),
        (("0 2 4 5", "lp", "full"), "0 2", 4),
        (("0 2 4 5",), "0 3 4", 4 + 1),
    ):
        with Engine(tiny_model("llama"), target=plan_of(*target)) as engine:
            drafts = [engine.draft(plan_of(draft))] if draft else []
            steps = engine.steps(engine.sequences(asked([20, 3, 20, 7])), drafts=drafts, policy=FixedPolicy(3))
            for _ in range(4):
                next(steps)
                assert sum(cache.bytes for cache in alive()) == layers * one_layer(4, room), (target, draft)


def test_an_engine_leaves_nothing_behind(tiny_model: Any, plan_of: Any, asked: Any) -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    before = tensors()
    for _ in range(2):
        with Engine(model) as engine:
            engine.generate(asked(4), drafts=[engine.draft(plan_of("0-2"))], policy=FixedPolicy(3))
            runner = weakref.ref(engine.runner)
        del engine
        assert tensors() == before
        assert runner() is None


def short_requests(engine: Engine, count: int, drafts: Any) -> None:
    """In batches of one to seven."""
    ways = [SamplingParams(), SamplingParams(temperature=1.0, top_p=0.9)]
    requests = [Request([5 + number % 50, 7][: 1 + number % 2], 3, ways[number % 2]) for number in range(count)]
    while requests:
        batch = requests[: 1 + len(requests) % 7]
        del requests[: len(batch)]
        assert len(engine.generate(batch, drafts=drafts, policy=FixedPolicy(3))) == len(batch)


def test_many_short_requests_leave_nothing_behind(tiny_model: Any, plan_of: Any) -> None:
    with Engine(tiny_model("llama")) as engine:
        drafts = [engine.draft(plan_of("0-2"))]
        short_requests(engine, 20, drafts)
        before, objects = tensors(), len(gc.get_objects())
        short_requests(engine, 150, drafts)
        assert tensors() == before
        assert len(gc.get_objects()) - objects < 50


@pytest.mark.slow
def test_ten_thousand_short_requests_leave_nothing_behind(tiny_model: Any) -> None:
    with Engine(tiny_model("llama", num_hidden_layers=2)) as engine:
        drafts = [engine.draft(DepthPlan.full(2))]
        short_requests(engine, 2000, drafts)
        before, used = tensors(), psutil.Process().memory_info().rss
        short_requests(engine, 8000, drafts)
        assert tensors() == before
        assert psutil.Process().memory_info().rss - used < 4_000_000, "500 bytes for each request"
