"""Steps from captured graphs. What records and replays stands in for CUDA here, except in the last test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from truedepth.engine.drafts.policy import FixedPolicy
from truedepth.engine.engine import Engine
from truedepth.engine.loop.decoder import Decoder
from truedepth.engine.runner.capture import Function, Replay
from truedepth.engine.sampling.batch_sampler import BatchSampler
from truedepth.engine.sampling.logits_sampler import LogitsSampler, SamplingParams
from truedepth.engine.sampling.request import Request
from truedepth.plan import DepthPlan


class Recorder:
    """Records like a graph: what is replayed reads the buffers it was recorded with, and writes one output."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, function: Function, buffers: Sequence[torch.Tensor]) -> Replay:
        self.recorded += 1
        output = function(buffers).clone()

        def replay() -> torch.Tensor:
            self.replayed += 1
            return output.copy_(function(buffers))

        return replay


@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral"])
@pytest.mark.parametrize("draft", [None, "0-2", "0 1 (2|3) 5"])
def test_captured_steps_write_the_same_tokens(
    tiny_model: Callable[..., Any], token_ids: Callable[..., Any], family: str, draft: str | None
) -> None:
    recorder = Recorder()
    with Engine(tiny_model(family)) as engine:
        requests = [Request(token_ids(1, length)[0].tolist(), 40, ignore_end=True) for length in (7, 12)]
        drafts = [] if draft is None else [engine.draft(DepthPlan.parse(draft, 6))]
        expected = [list(result.token_ids) for result in engine.generate(requests)]
        sequences = engine.sequences(requests)
        sampler = BatchSampler([LogitsSampler.of(SamplingParams())] * 2, engine.runner.vocabulary_size)
        decoder = Decoder(engine.runner, engine.target, drafts, _policy(drafts), sequences, sampler, recorder)
        steps = len(list(decoder.steps()))
    assert [list(sequence.result().token_ids) for sequence in sequences] == expected
    assert recorder.replayed > steps / 2
    assert recorder.recorded < steps / 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_graphs_write_the_same_tokens(tiny_model: Callable[..., Any], token_ids: Callable[..., Any]) -> None:
    model = tiny_model("llama").cuda()
    prompt = token_ids(1, 9)
    expected = model.generate(prompt.cuda(), max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0)
    with Engine(model) as engine:
        drafts = [engine.draft(DepthPlan.parse("0-2", 6))]
        request = Request(prompt[0].tolist(), 40, ignore_end=True)
        for own in ([], drafts):
            result = engine.generate([request], drafts=own)[0]
            assert list(result.token_ids) == expected[0, 9:].tolist()


def _policy(drafts: Sequence[Any]) -> Any:
    from truedepth.engine.drafts.policy import NoSpeculation

    return FixedPolicy(3) if drafts else NoSpeculation()
