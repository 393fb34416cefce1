"""Where drafts would agree with the target: looked up in texts that the target has written, without drafting.

At each token of such a text, a draft is given the target's own tokens. While it agrees, that is what it would see
when it really drafts, so runs of agreement are what the target would accept.

The states are those of real drafting too: a draft reads the target's cache entries of the tokens before (see
`truedepth.engine.drafts.drafts.Draft`) and its own of the token that it stands on. For an exit the two are the same,
and agreement is exact. Other drafts read, for the tokens that they have drafted in the same round, their own entries
instead of the target's: from the second drafted token on, their agreement is an approximation, on the high side.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary
from truedepth.engine.engine import Engine
from truedepth.engine.runner.caches import KVCache
from truedepth.engine.runner.model_runner import ForwardContext, ModelRunner
from truedepth.engine.sampling.request import Request
from truedepth.evaluation.agreement import Agreement
from truedepth.evaluation.layer_statistics import LayerStatistics
from truedepth.evaluation.plan_tree import key_of, last_states
from truedepth.plan import DepthPlan, Form, Stage
from truedepth.records.progress import Progress, silent

Text = tuple[Sequence[int], Sequence[int]]
"""A prompt, and what the target wrote after it."""

WHOLE = "whole"
"""What the whole vocabulary is called where sizes are text."""


def write_texts(engine: Engine, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Text]:
    """Let the target write on from prompts, greedily, as one batch.

    Raises:
        UsageError: prompt and new tokens do not fit the model's context.
    """
    results = engine.generate([Request(prompt, max_new_tokens=new_tokens) for prompt in prompts])
    return [(prompt, result.token_ids) for prompt, result in zip(prompts, results, strict=True)]


@dataclass
class TargetTexts(LayerStatistics):
    """How drafts of a real model agree with it. Made by `read_target_texts`.

    Attributes:
        runner: the model.
        tokens: what the target wrote but for its first token, (N, T) int64, filled up with zeros.
        lengths: how many of them are real, by text.
        context: of the tokens after which the target wrote those.
        cache: the target's entries of the texts.
        hidden: what goes into each layer at those tokens and, last, what comes out of the last: L + 1 times (N, T, D).
        vocabularies: of drafts, each of another size.
        every: score every token (1), every second one (2), and so on, for losses.
        known_losses: by `key_of` a plan; those that are computed are added.
        known_agreements: rows by size of the vocabulary (`WHOLE` or a number), by `key_of` a plan. Likewise.
    """

    runner: ModelRunner
    tokens: Tensor
    lengths: Sequence[int]
    context: ForwardContext
    cache: KVCache
    hidden: list[Tensor]
    vocabularies: Sequence[DraftVocabulary]
    every: int = 1
    progress: Progress = silent
    known_losses: MutableMapping[str, float] = field(default_factory=dict)
    known_agreements: MutableMapping[str, dict[str, list[str]]] = field(default_factory=dict)

    def losses(self, plans: Sequence[DepthPlan]) -> list[float]:
        """Mean cross-entropy (nats a token) of the target's tokens under each plan."""
        for key, hidden in self._last_states(plans, self.known_losses):
            scored = self._real()
            scored[:, torch.arange(scored.shape[1]) % self.every > 0] = False
            logits = self.runner.logits(hidden[scored][None])[0]  # (S, V)
            self.known_losses[key] = cross_entropy(logits.float(), self.tokens[scored]).item()
        return [self.known_losses[key_of(plan)] for plan in plans]

    def agreements(self, plans: Sequence[DepthPlan]) -> list[Mapping[int | None, Agreement]]:
        """For each plan its agreement, by the size of the draft vocabulary; None is the whole vocabulary."""
        for key, hidden in self._last_states(plans, self.known_agreements):
            self.known_agreements[key] = self._rows(hidden)
        return [
            {None if size == WHOLE else int(size): Agreement(tuple(rows)) for size, rows in known.items()}
            for known in (self.known_agreements[key_of(plan)] for plan in plans)
        ]

    def _rows(self, hidden: Tensor) -> dict[str, list[str]]:
        """Where the choices from the last hidden states, (N, T, D), are the target's, by size of the vocabulary."""
        rows: dict[str, list[str]] = {WHOLE: [], **{str(len(own.ids)): [] for own in self.vocabularies}}
        for states, tokens, length in zip(hidden, self.tokens, self.lengths, strict=True):
            logits = self.runner.logits(states[None, :length])[0]  # (T, V), of one text: they are large
            rows[WHOLE].append(_as_row(logits.argmax(-1) == tokens[:length]))
            for vocabulary in self.vocabularies:
                ids = vocabulary.ids.to(logits.device)
                chosen = ids[logits[:, ids].argmax(-1)]
                rows[str(len(ids))].append(_as_row(chosen == tokens[:length]))
        return rows

    @torch.inference_mode()
    def _last_states(self, plans: Sequence[DepthPlan], known: Container[str]) -> Iterator[tuple[str, Tensor]]:
        cache = _DraftCache(self.cache)

        def run(stage: Stage, form: Form, hidden: Tensor) -> Tensor:
            return self.runner.run([stage], form, hidden, self.context, lambda _: cache)

        yield from last_states(plans, known, self.hidden, run, self.progress, "Judging drafts")

    def _real(self) -> Tensor:
        """Which tokens are the target's, and not filled up, (N, T)."""
        lengths = torch.tensor(self.lengths, device=self.tokens.device)
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) < lengths[:, None]

    def _counted(self, cosines: Tensor) -> Tensor:
        return cosines[self._real()]


@torch.inference_mode()
def read_target_texts(
    engine: Engine,
    texts: Sequence[Text],
    vocabularies: Sequence[DraftVocabulary] = (),
    progress: Progress = silent,
    *,
    every: int = 1,
) -> TargetTexts:
    """Run the target over texts that it wrote, keeping its cache entries and what goes into each layer.

    Args:
        engine: its target is the unmodified model.
        texts: with prompts of one length, and at least one text of more than one new token.
        vocabularies: of drafts, each of another size.
        every: see `TargetTexts`.
    """
    runner = engine.runner
    read = len(texts[0][0])
    lengths = [len(written) - 1 for _, written in texts]
    most = max(lengths)
    written = torch.zeros(len(texts), most + 1, dtype=torch.int64, device=runner.device)
    for row, (_, tokens) in zip(written, texts, strict=True):
        row[: len(tokens)] = torch.tensor(tokens, device=runner.device)
    prompts = torch.tensor([list(prompt) for prompt, _ in texts], device=runner.device)
    ids = torch.cat([prompts, written[:, :-1]], 1)  # (N, P + T)
    cache = KVCache(len(texts), ids.shape[1])
    whole = runner.context([0] * len(texts), ids.shape[1], cache.capacity)
    state = runner.embed(ids)  # (N, P + T, D)
    hidden = [state[:, read:].clone()]
    with progress("Reading what the model wrote", engine.target.effective_depth) as advance:
        for stage in engine.target.stages:
            state = runner.run([stage], engine.target.form, state, whole, lambda _: cache)
            hidden.append(state[:, read:].clone())
            advance()
    context = _beside(runner.context([read] * len(texts), most, cache.capacity), state.dtype)
    return TargetTexts(runner, written[:, 1:], lengths, context, cache, hidden, vocabularies, every, progress)


class _DraftCache(KVCache):
    """Shows the target's entries, and after them a layer's own ones of the present pass, which it forgets again."""

    def __init__(self, target: KVCache) -> None:
        super().__init__(target.rows, target.capacity)
        self._target = target
        self._own: tuple[Tensor, Tensor] | None = None

    def write(self, layer: int, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        self._own = keys, values

    def read(self, layer: int, rows: slice, span: int) -> tuple[Tensor, Tensor]:
        """(B, H, span + T, head_dim) each."""
        assert self._own is not None
        (keys, values), (own_keys, own_values) = self._target.read(layer, rows, span), self._own
        return torch.cat([keys, own_keys], 2), torch.cat([values, own_values], 2)


def _beside(context: ForwardContext, dtype: torch.dtype) -> ForwardContext:
    """A context whose masks show each token the target's entries of the tokens before it, and then its own alone."""
    positions = context.positions[0]  # (T,); the same for all sequences
    entries = torch.arange(context.span, device=positions.device)
    own = torch.eye(len(positions), dtype=torch.bool, device=positions.device)
    masks = {}
    for window in context.masks:
        seen = entries < positions[:, None]  # (T, span)
        if window is not None:
            seen &= entries > positions[:, None] - window
        mask = torch.zeros(len(positions), context.span + len(positions), dtype=dtype, device=positions.device)
        masks[window] = mask.masked_fill_(~torch.cat([seen, own], 1), -torch.inf)[None, None]
    return replace(context, masks=masks)


def _as_row(agreed: Tensor) -> str:
    """(T,), bool, as ones and zeros."""
    return "".join("1" if value else "0" for value in agreed.tolist())
