"""The frozen model's hidden states of text, made once and kept on disk part by part.

A folder of states has `states.json`, which says what they are of, and `part-00000.safetensors` and so on, each with the
tokens of some passages, one passage after the other:

- `ids` (N,) int32: the tokens;
- `chosen` (N,) int32: what the model chose after each, -1 where the loss leaves it out;
- `stops` (passages,) int64: where each passage stops;
- `depth_8` (N, D) bfloat16: the states after 8 layers, and so on for each depth.

A part is written whole or not at all, and what is in it depends on its number alone, so making them can be interrupted
and gone on with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from truedepth.engine.drafts.heads.fingerprint import Fingerprint
from truedepth.engine.engine import Engine
from truedepth.engine.runner.caches import StateTable
from truedepth.engine.runner.model_runner import ForwardContext, ModelRunner
from truedepth.engine.runner.target_states import TargetStates
from truedepth.engine.sampling.request import Request
from truedepth.engine.sampling.sequences import SequenceState
from truedepth.errors import TrainingError, UsageError
from truedepth.models.loading.load import LoadedModel
from truedepth.records.files import prepare_output, write_atomic
from truedepth.records.messages import one_line
from truedepth.records.progress import Progress, silent
from truedepth.training.heads.text import Passage, digest_of

STATES_FILE = "states.json"

NOTHING = -1
"""Instead of a chosen token that the loss leaves out."""

STORED = torch.bfloat16
"""Type of the states on disk."""

_SCORED = 256
"""Tokens whose choices are looked up at once: logits are large."""


class Recorder:
    """An observer that keeps the target's states of all tokens of some sequences.

    Args:
        count, capacity: of the sequences, and tokens that each has room for.
    """

    def __init__(self, count: int, capacity: int, depths: Sequence[int]) -> None:
        self._capacity, self._order = capacity, tuple(depths)
        self._table = StateTable(count, capacity)
        self.depths = frozenset(depths)

    def see(self, sequences: Sequence[SequenceState], states: TargetStates, context: ForwardContext) -> None:
        rows = torch.tensor([sequence.index for sequence in sequences], device=context.positions.device)
        slots = rows[:, None] * self._capacity + context.positions  # (B, T)
        self._table.write(states.at(*self._order), slots.flatten())

    def of(self, index: int, tokens: int) -> Tensor:
        """The first states of a sequence, (tokens, D * number of depths)."""
        return self._table.read(torch.arange(tokens) + index * self._capacity)


def make_states(
    loaded: LoadedModel,
    passages: Sequence[Passage],
    folder: Path,
    depths: Sequence[int],
    *,
    tokens: int,
    batch: int,
    progress: Progress = silent,
) -> States:
    """Read passages, or write on from them, until there are enough tokens; parts that are there already are kept.

    Args:
        loaded: no engine is open on it.
        depths: numbers of layers after which states are kept; those after the last layer always are.
        tokens: stop after the part with which there are so many.
        batch: passages of a part, which are decoded as one batch.

    Raises:
        UsageError: a depth that the model does not have.
        TrainingError: the folder holds states of something else, or a part is damaged.
        OutputError: a file cannot be written.
    """
    last = Fingerprint.of(loaded.model).num_layers
    if wrong := [depth for depth in depths if not 1 <= depth <= last]:
        raise UsageError(f"states are wanted at depth {wrong[0]}, but the model's depths are 1 to {last}")
    kept = sorted({*depths, last})
    prepare_output(folder, resume=True)
    written = _claim(folder, {"model": _identity(loaded), "text": digest_of(passages), "batch": batch}, kept)
    groups = [passages[start : start + batch] for start in range(0, len(passages), batch)]
    parts: list[Path] = []
    found = 0
    with ExitStack() as stack, progress("Making hidden states", -(-tokens // 1000)) as advance:
        engine: Engine | None = None
        for number, group in enumerate(groups):
            parts.append(folder / f"part-{number:05d}.safetensors")
            if not parts[-1].exists():
                engine = engine or stack.enter_context(Engine(loaded.model))
                write_atomic(parts[-1], save(_part(engine, group, written)))
            before, found = found, found + _count(parts[-1])
            for _ in range(min(found, tokens) // 1000 - min(before, tokens) // 1000):
                advance()
            if found >= tokens:
                break
    return States(parts)


@torch.inference_mode()
def _part(engine: Engine, group: Sequence[Passage], depths: Sequence[int]) -> dict[str, Tensor]:
    requests = [Request(passage.ids, max(passage.new_tokens, 1)) for passage in group]
    capacity = max(len(request.prompt_ids) + request.max_new_tokens for request in requests)
    recorder = Recorder(len(group), capacity, depths)
    results = engine.generate(requests, observers=[recorder])
    ids: list[int] = []
    chosen: list[Tensor] = []
    stops: list[int] = []
    states: list[Tensor] = []
    for index, (passage, result) in enumerate(zip(group, results, strict=True)):
        # Of the last token written there are no states: nothing was asked after it.
        known = [*passage.ids, *result.token_ids][: -1 if passage.new_tokens else len(passage.ids)]
        hidden = recorder.of(index, len(known))
        last = hidden.chunk(len(depths), -1)[-1]  # (N, D)
        written = _written(passage, result.token_ids) if passage.new_tokens else None
        chosen.append(_likeliest(engine.runner, passage, last) if written is None else written)
        ids += known
        stops.append(len(ids))
        states.append(hidden.to("cpu", STORED))
    columns = torch.cat(states).chunk(len(depths), -1)
    return {
        "ids": torch.tensor(ids, dtype=torch.int32),
        "chosen": torch.cat(chosen),
        "stops": torch.tensor(stops),
        **{f"depth_{depth}": column.contiguous() for depth, column in zip(depths, columns, strict=True)},
    }


def _written(passage: Passage, answer: Sequence[int]) -> Tensor:
    """What the model chose after each token, where it has written greedily: (N,), int32."""
    return torch.tensor([NOTHING] * (len(passage.ids) - 1) + list(answer), dtype=torch.int32)


def _likeliest(runner: ModelRunner, passage: Passage, hidden: Tensor) -> Tensor:
    """The same for text that was read, by the last layer's states, (N, D)."""
    chosen = torch.full((len(passage.ids),), NOTHING, dtype=torch.int32)
    wanted = torch.tensor([*passage.loss_mask[1:], False]).nonzero()[:, 0]
    for some in wanted.split(_SCORED):
        chosen[some] = runner.logits(hidden[some.to(hidden.device)][None])[0].argmax(-1).int().cpu()
    return chosen


def _claim(folder: Path, subject: dict[str, Any], depths: list[int]) -> list[int]:
    """Write what the folder is of, or refuse one that is of something else; returns the depths whose states it has."""
    path = folder / STATES_FILE
    if not path.exists():
        write_atomic(path, json.dumps({**subject, "depths": depths}, indent=2) + "\n")
        return depths
    try:
        before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8-sig"))
        held: list[int] = list(before.pop("depths"))
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise TrainingError(f"{path} cannot be read ({one_line(error)}); delete its folder") from None
    changed = sorted(key for key in {*before, *subject} if before.get(key) != subject.get(key))
    if changed or not set(held).issuperset(depths):
        what = listed_changes(changed, sorted(set(depths) - set(held)))
        raise TrainingError(f"{folder} holds states for something else: {what}; give another folder, or delete it")
    return held


def listed_changes(changed: Sequence[str], missing: Sequence[int]) -> str:
    """What about states is other than was asked for, in words."""
    parts = [f"another {key}" for key in changed]
    if missing:
        parts.append(f"none at depth {', '.join(map(str, missing))}")
    return ", ".join(parts)


def _identity(loaded: LoadedModel) -> str:
    """A hash by which the same weights are known in the same type."""
    fingerprint = Fingerprint.of(loaded.model)
    digest = hashlib.sha256(str(loaded.model.dtype).encode())
    for sample in (fingerprint.embedding, fingerprint.norms):
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def _count(part: Path) -> int:
    return len(_open(part).get_slice("ids")[:])


def _open(part: Path) -> Any:
    try:
        return safe_open(part, framework="pt")
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{part} is damaged ({one_line(error)}); delete it, and run the same again") from None


class States:
    """Parts of a folder of states, read as one long row of tokens.

    Attributes:
        parts: the files.
        ids, chosen: see this module, (N,) int64.
        positions: of each token in its passage, (N,) int64.
    """

    def __init__(self, parts: Sequence[Path]) -> None:
        self.parts = tuple(parts)
        self._files = [_open(part) for part in parts]
        ids = [file.get_tensor("ids").long() for file in self._files]
        self._ends: list[int] = torch.tensor([len(part) for part in ids]).cumsum(0).tolist()
        self.ids = torch.cat(ids)
        self.chosen = torch.cat([file.get_tensor("chosen").long() for file in self._files])
        self.positions = torch.cat([_positions(file.get_tensor("stops")) for file in self._files])

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, depths: Sequence[int], start: int, stop: int) -> Tensor:
        """States of tokens `start` to before `stop` at some depths, side by side: (T, W), bfloat16."""
        pieces = []
        begin = 0
        for file, end in zip(self._files, self._ends, strict=True):
            here = slice(max(start, begin) - begin, min(stop, end) - begin)
            if here.start < here.stop:
                pieces.append(torch.cat([file.get_slice(f"depth_{depth}")[here] for depth in depths], -1))
            begin = end
        return torch.cat(pieces)

    def counts(self, vocabulary_size: int) -> Tensor:
        """How often the model chose each token, (V,), int64."""
        return torch.bincount(self.chosen[self.chosen != NOTHING], minlength=vocabulary_size)


def _positions(stops: Tensor) -> Tensor:
    """Of the tokens of passages that stop there."""
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), stops[:-1]])
    return torch.arange(int(stops[-1])) - starts.repeat_interleave(stops - starts)
