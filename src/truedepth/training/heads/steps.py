"""A head's drafting on rows of cached states, for all tokens of a text at once, in a form that can be trained.

From each token of a text a head drafts some tokens ahead. At the first position it is given the target's states. At
later ones an EAGLE head is given its own, as it will be when it drafts: training on them is EAGLE-3's training-time
test (arXiv 2503.01840, section 3.2). The tokens between are those of the text, as in HASS (arXiv 2408.15766).

The model's own attention modules do the work: keys of the first position and of each later one lie beside each other,
and a mask shows each query what it will see in drafting.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from truedepth.engine.drafts.heads.eagle_head import EagleHead
from truedepth.engine.drafts.heads.exit_head import ExitHead
from truedepth.engine.runner.caches import KVCache
from truedepth.engine.runner.model_runner import ForwardContext, ModelRunner
from truedepth.training.data.rows import IGNORED

Rows = Mapping[str, Tensor]
"""A batch of rows as `HeadRows` makes them."""


@dataclass(frozen=True, eq=False)
class Drafted:
    """What a head comes to at one drafted position.

    Attributes:
        position: 1 for the first token drafted, and so on.
        starts: the token of its row from which each draft starts, (B, n), int64.
        hidden: the head's last states there, (B, n, D).
        targets: the token of its row after which the target chose what is drafted here, (B, n), int64.
        loss_mask: whether there is such a token in the same passage, and the loss is over it, (B, n), bool.
        share: of the drafts that could go on to here, how many are looked at.
    """

    position: int
    starts: Tensor
    hidden: Tensor
    targets: Tensor
    loss_mask: Tensor
    share: float


class DraftingSteps:
    """Runs a head over rows.

    Args:
        core: the model that the head is for, which is not packed.
    """

    def __init__(self, head: ExitHead | EagleHead, core: PreTrainedModel) -> None:
        self.head, self.runner = head, ModelRunner(core)
        self._stages = self.runner.adopt(head.layers)

    def run(self, rows: Rows, positions: int, keep: float = 1.0, draw: int = 0) -> Iterator[Drafted]:
        """Draft from the tokens of some rows.

        Args:
            positions: how many tokens ahead.
            keep: share of the drafts that go on to each further position; the others are left out, drawn by chance.
            draw: seed of that chance.
        """
        generator = torch.Generator().manual_seed(draw)
        chain, marks = _Chain(), _Marks(rows["position_ids"])
        embedded = self.runner.embed(rows["input_ids"]).detach()  # (B, T, D)
        starts = torch.arange(embedded.shape[1], device=embedded.device).expand(len(embedded), -1)  # (B, T)
        hidden = self._layers(self._first(rows, embedded), marks.first_position(self.runner, starts), chain)
        first, share = hidden, 1.0
        for position in range(1, positions + 1):
            targets = starts + position - 1
            loss_mask = _loss_mask(rows, starts, targets)
            yield Drafted(position, starts, hidden, targets.clamp(max=embedded.shape[1] - 1), loss_mask, share)
            if position == positions:
                return
            if keep < 1:
                going = _loss_mask(rows, starts, targets + 1)
                kept = _sample(going, keep, generator)  # (B, n)
                share *= _part(going.gather(1, kept), going)
                starts, hidden = starts.gather(1, kept), _gather(hidden, kept)
            following = (starts + position).clamp(max=embedded.shape[1] - 1)
            if isinstance(self.head, EagleHead):
                entering = self.head.layer_inputs(hidden, _gather(embedded, following))
                hidden = self._layers(entering, marks.later_position(self.runner, starts, position), chain)
            else:  # its states of the token drafted are those that the target has, too
                hidden = _gather(first, following)

    def _first(self, rows: Rows, embedded: Tensor) -> Tensor:
        """What enters the head's layers at the first position, (B, T, D)."""
        states = rows["states"].to(embedded.dtype)
        if isinstance(self.head, EagleHead):
            return self.head.layer_inputs(self.head.combine_hidden_states(states), embedded)
        return states

    def _layers(self, hidden: Tensor, context: ForwardContext, chain: _Chain) -> Tensor:
        return self.runner.run(self._stages, "lp", hidden, context, lambda _: chain)


class _Chain(KVCache):
    """Shows a layer all entries that it has written, over all positions."""

    def __init__(self) -> None:
        super().__init__(0, 0)
        self._written: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)

    def write(self, layer: int, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        self._written[layer].append((keys, values))

    def read(self, layer: int, rows: slice, span: int) -> tuple[Tensor, Tensor]:
        """(B, H, entries, head_dim) each."""
        keys, values = zip(*self._written[layer], strict=True)
        return torch.cat(keys, 2), torch.cat(values, 2)


class _Marks:
    """What queries see of the entries of one batch of rows.

    Args:
        positions: of the rows' tokens, (B, T), int64.
    """

    def __init__(self, positions: Tensor) -> None:
        self._positions = positions
        order = torch.arange(positions.shape[1], device=positions.device)
        self._passages = order - positions  # (B, T): the same for tokens of one passage, and for no others
        self._later: list[Tensor] = []  # the starts of each later position

    def first_position(self, runner: ModelRunner, starts: Tensor) -> ForwardContext:
        return runner.context_at(self._positions, lambda window: _mask(self._before(starts, 0, window), runner))

    def later_position(self, runner: ModelRunner, starts: Tensor, ahead: int) -> ForwardContext:
        """Of the tokens `ahead` of the starts, (B, n), which see what stands up to the start, and their own draft."""
        self._later.append(starts)

        def mask_of(window: int | None) -> Tensor:
            seen = [self._before(starts, ahead, window)]
            for position, others in enumerate(self._later, 1):
                near = window is None or ahead - position < window
                seen.append((starts[:, :, None] == others[:, None, :]) & near)  # (B, n, n')
            return _mask(torch.cat(seen, 2), runner)

        return runner.context_at(self._positions.gather(1, starts) + ahead, mask_of)

    def _before(self, starts: Tensor, ahead: int, window: int | None) -> Tensor:
        """Which tokens of the rows are seen from `ahead` of the starts: (B, n, T)."""
        order = torch.arange(self._positions.shape[1], device=starts.device)
        same = self._passages.gather(1, starts)[:, :, None] == self._passages[:, None, :]
        seen = same & (order <= starts[:, :, None])
        return seen if window is None else seen & (order > starts[:, :, None] + ahead - window)


def _mask(seen: Tensor, runner: ModelRunner) -> Tensor:
    """0 where a token may look and -inf where not: (B, 1, n, entries)."""
    dtype: torch.dtype = runner.model.dtype
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)[:, None]


def _loss_mask(rows: Rows, starts: Tensor, targets: Tensor) -> Tensor:
    """Whether targets are in the same passage as their starts, and in the loss: (B, n), bool."""
    positions, last = rows["position_ids"], rows["labels"].shape[1] - 1
    there = targets.clamp(max=last)
    same = positions.gather(1, there) - there == positions.gather(1, starts) - starts
    return (targets <= last) & same & (rows["labels"].gather(1, there) != IGNORED)


def _sample(going: Tensor, keep: float, generator: torch.Generator) -> Tensor:
    """Indexes of a share of the drafts that go on, the same number in each row: (B, n), in rising order."""
    count = max(1, round(keep * going.shape[1]))
    chance = torch.rand(going.shape, generator=generator).to(going.device)
    return (chance + going).topk(count, 1).indices.sort(1).values


def _part(kept: Tensor, going: Tensor) -> float:
    """The share of what goes on that was kept; 1 where nothing does."""
    return int(kept.sum()) / max(1, int(going.sum())) or 1.0


def _gather(hidden: Tensor, indexes: Tensor) -> Tensor:
    """(B, T, D) and (B, n) to (B, n, D)."""
    return hidden.gather(1, indexes[:, :, None].expand(-1, -1, hidden.shape[-1]))
