"""Entrants take turns on the same prompts; their figures, medians over the rounds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from decoding_entrants import Answer, DraftConfig, Prompts
from transformers import PreTrainedModel

from truedepth.measuring.bandwidth import read_bandwidth
from truedepth.measuring.timer import Spread
from truedepth.measuring.work import DecodeWork
from truedepth.plan import DepthPlan
from truedepth.records.progress import Progress

WARM_UP_TOKENS = 16


@dataclass(frozen=True)
class Turn:
    """One entrant's answers to all prompts in one round.

    Attributes:
        tokens_per_second: tokens a second after the first token, over all sequences.
        tokens_per_second_with_prompt: tokens a second from the prompt on.
        first_seconds: the median time to the first token.
        bandwidth: bytes a second at which memory was read just before.
    """

    answers: tuple[Answer, ...]
    bandwidth: float

    @property
    def tokens_per_second(self) -> float:
        new = sum(answer.new - answer.early for answer in self.answers)
        return new / sum(answer.seconds - answer.first_seconds for answer in self.answers)

    @property
    def tokens_per_second_with_prompt(self) -> float:
        return sum(answer.new for answer in self.answers) / sum(answer.seconds for answer in self.answers)

    @property
    def first_seconds(self) -> float:
        return median(answer.first_seconds for answer in self.answers)


@dataclass(frozen=True)
class Compared:
    """All turns of one batch size.

    Attributes:
        turns: by entrant, one a round.
        warm_up: seconds of a first answer that does not count, compilation included.
    """

    configs: Sequence[DraftConfig]
    turns: Mapping[str, list[Turn]]
    warm_up: Mapping[str, float]
    batch: int
    context: int

    @property
    def bandwidth(self) -> float:
        """Bytes a second, the median over all turns."""
        return median(turn.bandwidth for turns in self.turns.values() for turn in turns)

    def best(self, family: str, *, speculating: bool) -> str | None:
        """The fastest of a family's entrants, among those that do not speculate or all."""
        members = [one.name for one in self.configs if one.family == family and (speculating or not one.speculates)]
        return max(members, key=lambda name: median(turn.tokens_per_second for turn in self.turns[name]), default=None)

    def to_dict(self, model: PreTrainedModel) -> dict[str, Any]:
        """Plain figures; `model` is the one that all run, with its weights in place."""
        plain = next((one.name for one in self.configs if one.family == "truedepth" and not one.speculates), None)
        peer, any_peer = (self.best("transformers", speculating=speculating) for speculating in (False, True))
        return {
            "batch": self.batch,
            "bandwidth_bytes_per_second": self.bandwidth,
            "best_of_transformers": any_peer,
            "best_plain_of_transformers": peer,
            "entrants": {
                one.name: {
                    "family": one.family,
                    "speculates": one.speculates,
                    **self._figures(one, model),
                    "ratio_to_best_plain_of_transformers": self._ratio(one.name, peer),
                    "ratio_to_best_of_transformers": self._ratio(one.name, any_peer),
                    "ratio_to_plain_truedepth": self._ratio(one.name, plain),
                    "same_text_as_plain_truedepth": self._same(one, plain),
                }
                for one in self.configs
            },
        }

    def _figures(self, one: DraftConfig, model: PreTrainedModel) -> dict[str, Any]:
        turns = self.turns[one.name]
        answers = [answer for turn in turns for answer in turn.answers]
        speed = Spread.of([turn.tokens_per_second for turn in turns])
        work = DecodeWork.of(model, context=self.context, batch=self.batch, bytes_per_value=one.bytes_per_value)
        bytes_per_token = work.bytes_per_token(DepthPlan.full(model.config.num_hidden_layers))
        drafted, passes = sum(answer.drafted for answer in answers), sum(answer.passes for answer in answers)
        return {
            "decode_tokens_per_second": asdict(speed),
            "tokens_per_second_with_prompt": asdict(Spread.of([turn.tokens_per_second_with_prompt for turn in turns])),
            "time_to_first_token_seconds": asdict(Spread.of([turn.first_seconds for turn in turns])),
            "acceptance": sum(answer.accepted for answer in answers) / drafted if drafted else None,
            "tokens_per_pass": sum(answer.new - answer.early for answer in answers) / passes,
            "bytes_per_token": bytes_per_token,
            "share_of_bandwidth_limit": speed.median * bytes_per_token / self.bandwidth,
            "warm_up_seconds": self.warm_up[one.name],
        }

    def _ratio(self, name: str, base: str | None) -> dict[str, float] | None:
        if base is None:
            return None
        pairs = zip(self.turns[name], self.turns[base], strict=True)
        return asdict(Spread.of([own.tokens_per_second / other.tokens_per_second for own, other in pairs]))

    def _same(self, one: DraftConfig, plain: str | None) -> float | None:
        """The share of prompts that got the same tokens; None where the entrant gives none."""
        if plain is None or not self.turns[one.name][0].answers[0].tokens:
            return None
        pairs = zip(self.turns[one.name][0].answers, self.turns[plain][0].answers, strict=True)
        same = [a == b for own, other in pairs for a, b in zip(own.tokens, other.tokens, strict=True)]
        return sum(same) / len(same)


def compare(
    configs: Sequence[DraftConfig],
    prompts: Prompts,
    *,
    batch: int,
    new_tokens: int,
    repeats: int,
    progress: Progress,
) -> Compared:
    """Let the entrants that take such a batch answer all prompts in each round, in alternating order."""
    able = [one for one in configs if one.largest_batch is None or batch <= one.largest_batch]
    batches = [prompts[start : start + batch] for start in range(0, len(prompts) - batch + 1, batch)]
    turns: dict[str, list[Turn]] = {one.name: [] for one in able}
    warm_up: dict[str, float] = {}
    with progress(f"batch {batch}", len(able) * (repeats + 1)) as advance:
        for one in able:
            begun = time.perf_counter()
            one.answer(batches[0], min(WARM_UP_TOKENS, new_tokens))
            warm_up[one.name] = time.perf_counter() - begun
            advance()
        for turn in range(repeats):
            for one in able if turn % 2 == 0 else able[::-1]:
                bandwidth = read_bandwidth(torch.device("cpu"))
                answers = tuple(one.answer(each, new_tokens) for each in batches)
                turns[one.name].append(Turn(answers, bandwidth))
                advance()
    context = round(median(map(len, prompts))) + new_tokens // 2
    return Compared(able, turns, warm_up, batch, context)
