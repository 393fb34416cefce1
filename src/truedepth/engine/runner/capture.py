"""Steps captured as CUDA graphs: one launch for a whole range of stages, instead of one for each small kernel.

A graph replays the same kernels on the same memory. It therefore holds for one range of stages, shape and cache, reads
its inputs from buffers of its own, and attention looks at a span that grows in strides (see `STRIDE`), the rest masked.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from truedepth.engine.runner.model_runner import CacheOf, ForwardContext, RunStages
from truedepth.plan import Form, Stage

STRIDE = 256
"""Captured steps see a multiple of so many cache entries."""

MOST_TOKENS = 64
"""Passes over more tokens than this, all sequences together, are prompts: rarely of the same shape twice."""

_SEEN_BEFORE = 1
"""How often a step of its kind has run before it is captured, since capturing costs more than running."""

Function = Callable[[Sequence[Tensor]], Tensor]


class Replay(Protocol):
    """Runs what was recorded once more, on what its input buffers hold now."""

    def __call__(self) -> Tensor: ...


Record = Callable[[Function, Sequence[Tensor]], Replay]
"""Runs a function on input buffers and records what it does."""


def record_cuda_graph(function: Function, buffers: Sequence[Tensor]) -> Replay:
    """Record by `torch.cuda.graph`, after a run on a side stream, as capturing demands."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        function(buffers)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = function(buffers)

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


class CapturedRun:
    """Runs stages as `ModelRunner.run` does, from a graph where it has one.

    Args:
        run: what to capture.
        record: how.
    """

    def __init__(self, run: RunStages, record: Record) -> None:
        self._run, self._record = run, record
        self._seen: dict[Hashable, int] = {}
        self._graphs: dict[Hashable, tuple[list[Tensor], Replay]] = {}

    def __call__(
        self, stages: Sequence[Stage], form: Form, hidden: Tensor, context: ForwardContext, cache_of: CacheOf
    ) -> Tensor:
        if not stages or hidden.shape[0] * hidden.shape[1] > MOST_TOKENS:
            return self._run(stages, form, hidden, context, cache_of)
        caches = tuple(id(cache_of(layer)) for stage in stages for layer in stage.layers)
        key = (tuple(stages), form, tuple(hidden.shape), context.rows.start, context.span, caches)
        inputs = [hidden, *context.tensors()]
        if key in self._graphs:
            buffers, replay = self._graphs[key]
            for buffer, given in zip(buffers, inputs, strict=True):
                buffer.copy_(given)
            return replay().clone()  # the next replay overwrites it
        self._seen[key] = self._seen.get(key, 0) + 1
        if self._seen[key] <= _SEEN_BEFORE:
            return self._run(stages, form, hidden, context, cache_of)
        buffers = [given.clone() for given in inputs]

        def function(given: Sequence[Tensor]) -> Tensor:
            return self._run(stages, form, given[0], context.with_tensors(given[1:]), cache_of)

        self._graphs[key] = (buffers, self._record(function, buffers))
        buffers, replay = self._graphs[key]
        return replay().clone()
