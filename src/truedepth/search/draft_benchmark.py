"""Timing drafts against plain decoding: the same prompts, in turns, through the same engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median, quantiles

import torch

from truedepth.engine.drafts.drafts import Draft
from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary
from truedepth.engine.drafts.policy import FixedPolicy
from truedepth.engine.engine import Engine
from truedepth.engine.sampling.request import Request
from truedepth.engine.sampling.result import shares_by_position
from truedepth.errors import SearchError
from truedepth.measuring.bandwidth import read_bandwidth
from truedepth.measuring.step_costs import StepCosts
from truedepth.measuring.step_timing import measure_step_costs
from truedepth.measuring.timer import in_turns
from truedepth.records.journal import Journal
from truedepth.records.progress import Progress, silent
from truedepth.search.draft_results import DraftRecord, TimedRecord
from truedepth.search.draft_search import Candidate

LEAST_TOKENS = 8
"""Texts of fewer tokens are not timed: an end token came too soon."""


@dataclass(frozen=True)
class DraftConfig:
    """A draft and how many tokens it drafts in a round; None: adaptive."""

    candidate: Candidate
    num_speculative_tokens: int | None

    @property
    def key(self) -> str:
        """No two configurations have the same."""
        return f"{self.candidate.key}, {self.num_speculative_tokens or 'adaptive'}"


@dataclass(frozen=True, slots=True)
class DraftRun:
    """One prompt, continued.

    Attributes:
        tokens: that were written.
        seconds: from the first of them to the last.
        drafted, accepted: tokens of each round of drafting.
    """

    tokens: Sequence[int]
    seconds: float
    drafted: Sequence[int]
    accepted: Sequence[int]

    @property
    def tokens_per_second(self) -> float:
        return (len(self.tokens) - 1) / self.seconds


class Timer:
    """All of the job that looks at the clock of this machine."""

    def costs(self, engine: Engine, vocabularies: Sequence[DraftVocabulary], progress: Progress) -> StepCosts:
        """What the parts of a step cost."""
        return measure_step_costs(engine, vocabularies, progress)

    def run(
        self, engine: Engine, request: Request, draft: Draft | None, num_speculative_tokens: int | None
    ) -> DraftRun:
        """Continue a prompt, plainly without a draft."""
        drafts = () if draft is None else (draft,)
        policy = None if num_speculative_tokens is None else FixedPolicy(num_speculative_tokens)
        (result,) = engine.generate([request], drafts=drafts, policy=policy)
        rounds = [step for step in result.steps if step.drafted]
        return DraftRun(
            tokens=result.token_ids,
            seconds=result.timings.total - result.timings.first_token,
            drafted=[step.drafted for step in rounds],
            accepted=[step.accepted for step in rounds],
        )

    def bandwidth(self, device: torch.device) -> float:
        """Bytes per second at which a device reads its memory."""
        return read_bandwidth(device)


@dataclass
class DraftBenchmark:
    """Drafts against plain decoding, on the same prompts.

    Attributes:
        name: of the runs in the journal.
        prompts: token ids.
        new_tokens: to be written after each.
        vocabularies: of drafts, by size.
    """

    name: str
    engine: Engine
    timer: Timer
    journal: Journal
    prompts: Sequence[Sequence[int]]
    new_tokens: int
    vocabularies: Mapping[int, DraftVocabulary]
    progress: Progress = silent

    def run(self, configs: Sequence[DraftConfig]) -> list[TimedRecord]:
        """Time all of them against plain decoding, in their order, after a run of each that does not count.

        Raises:
            SearchError: the model ends all texts too soon.
        """
        runs = in_turns(
            [None, *configs],
            self._remembered,
            rounds=len(self.prompts),
            warm_up=self._warm_up,
            progress=self.progress,
            title="Timing drafts",
        )
        return [_record(config, runs[None], runs[config]) for config in configs]

    def _warm_up(self, entry: DraftConfig | None) -> None:
        known = self.journal.of_kind(self.name)
        if any(_key_of_run(prompt, entry) not in known for prompt in range(len(self.prompts))):
            self._continue(entry, 0)

    def _remembered(self, entry: DraftConfig | None, prompt: int) -> DraftRun:
        key = _key_of_run(prompt, entry)
        return DraftRun(**self.journal.remember(self.name, key, lambda: asdict(self._continue(entry, prompt))))

    def _continue(self, entry: DraftConfig | None, prompt: int) -> DraftRun:
        request = Request(self.prompts[prompt], max_new_tokens=self.new_tokens)
        if entry is None:
            return self.timer.run(self.engine, request, None, None)
        size = entry.candidate.vocabulary
        draft = self.engine.draft(entry.candidate.plan, vocabulary=None if size is None else self.vocabularies[size])
        return self.timer.run(self.engine, request, draft, entry.num_speculative_tokens)


def _key_of_run(prompt: int, entry: DraftConfig | None) -> str:
    return f"prompt {prompt}: {'plain' if entry is None else entry.key}"


def draft_record(candidate: Candidate) -> DraftRecord:
    """A candidate as `lossless.json` keeps it."""
    return DraftRecord(
        method=candidate.method,
        notation=candidate.plan.notation,
        num_layers=candidate.plan.num_layers,
        form=candidate.plan.form,
        exit=candidate.exit,
        vocabulary=candidate.vocabulary,
    )


def _record(config: DraftConfig, plain: Sequence[DraftRun], own: Sequence[DraftRun]) -> TimedRecord:
    """The figures of a draft from its runs and the plain ones on the same prompts, in the same order."""
    pairs = [
        (before, after)
        for before, after in zip(plain, own, strict=True)
        if min(len(before.tokens), len(after.tokens)) >= LEAST_TOKENS
    ]
    if not pairs:
        raise SearchError(
            f"the model ends all its texts within {LEAST_TOKENS} tokens, too soon to time anything; "
            "give prompts that it has more to say to, by --text FILE"
        )
    speedups = [after.tokens_per_second / before.tokens_per_second for before, after in pairs]
    rounds = [pair for _, after in pairs for pair in zip(after.drafted, after.accepted, strict=True)]
    return TimedRecord(
        draft=draft_record(config.candidate),
        num_speculative_tokens=config.num_speculative_tokens,
        speedup=median(speedups),
        low=min(speedups),
        lower_quartile=quantiles(speedups, n=4, method="inclusive")[0] if speedups[1:] else speedups[0],
        high=max(speedups),
        plain_tokens_per_second=median(before.tokens_per_second for before, _ in pairs),
        tokens_per_second=median(after.tokens_per_second for _, after in pairs),
        rounds=len(rounds),
        drafted=sum(drafted for drafted, _ in rounds),
        accepted=sum(accepted for _, accepted in rounds),
        acceptance_by_position=list(shares_by_position(rounds)),
        runs=len(pairs),
        same_texts=sum(list(before.tokens) == list(after.tokens) for before, after in pairs),
    )
