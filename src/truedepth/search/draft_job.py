"""The job behind `truedepth optimize --lossless`: find the draft that makes decoding fastest without changing a token.

The model writes texts after calibration prompts; where drafts agree with them, and what the parts of a step cost on
this machine, gives every draft its expected tokens a second. The best of them are timed on validation prompts, and
the winner is timed once more on test prompts, which nothing was chosen by. Only what that confirms is recommended.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary, build_vocabulary
from truedepth.engine.engine import Engine
from truedepth.errors import SearchError, TextError
from truedepth.evaluation.drafting import TargetTexts, Text, read_target_texts, write_texts
from truedepth.evaluation.plan_tree import key_of
from truedepth.evaluation.texts import Sizes, default_texts
from truedepth.measuring.step_costs import StepCosts
from truedepth.plan.plan_file import PLAN_FILE, save_plan
from truedepth.records.progress import Progress, silent
from truedepth.records.text_files import read_text
from truedepth.records.version import VERSION
from truedepth.search.draft_benchmark import DraftBenchmark, DraftConfig, Timer, draft_record
from truedepth.search.draft_results import (
    LOSSLESS_FILE,
    AimRecord,
    CandidateRecord,
    LosslessResults,
    TimedRecord,
)
from truedepth.search.draft_search import DraftSearch, Rating
from truedepth.search.job import Job, open_job
from truedepth.search.recipe import LosslessRecipe

NEW_TOKENS = 64
"""Tokens that are written after each prompt."""

_REMOVAL_TEXTS, _EVERY = 3, 2
"""Texts by which greedy removal chooses layers, and which of their tokens: every second one."""

_FINALISTS = 3
"""Drafts that are timed on validation prompts."""

_HOPE = 0.95
"""Drafts whose expected speedup is less are not worth timing, but for the best of all."""

_VOCABULARY_PARTS = (32, 8)
"""Draft vocabularies have a 32nd and an 8th of the model's tokens."""

_COUNTED_WINDOWS = 400
"""Windows of the default text that the frequency of tokens is counted in."""


def optimize_lossless(
    recipe: LosslessRecipe,
    folder: Path,
    *,
    resume: bool = False,
    progress: Progress = silent,
    timer: Timer | None = None,
) -> LosslessResults:
    """Find the best draft for a model and write `lossless.json` and `recipe.yaml`.

    A draft that pays is written too: its plan as `plan.yaml` and its vocabulary, if it has one, as
    `truedepth.engine.drafts.heads.vocabulary.DraftVocabulary` saves it.

    Args:
        folder, resume: see `truedepth.search.job.open_job`.
        progress: shown each part of the work.
        timer: all that looks at the clock; this machine's where it is None.

    Raises:
        TruedepthError: what the recipe asks for is wrong, cannot be loaded, reached or written.
    """
    job = open_job(recipe, folder, progress, resume=resume)
    loaded = job.loaded
    with Engine(loaded.model, loaded.tokenizer) as engine:
        search = DraftJob(job, engine, timer or Timer())
        results = search.run()
        vocabulary = search.vocabularies.get(results.best.draft.vocabulary or 0)
    if results.pays:
        comment = f"The draft found by truedepth {VERSION} for {recipe.model}: {results.best.draft.method}"
        save_plan(results.best.draft.to_plan(), folder / PLAN_FILE, comment=comment)
        if vocabulary is not None:
            vocabulary.save(folder, loaded.model, loaded.tokenizer)
    job.save(results, LOSSLESS_FILE)
    return results


@dataclass(frozen=True)
class DraftJob:
    """The search for a draft, on a loaded model."""

    job: Job[LosslessRecipe]
    engine: Engine
    timer: Timer

    def run(self) -> LosslessResults:
        """Rate all drafts, time the best on validation prompts, and the winner on test prompts.

        Raises:
            SearchError: the model has a single layer, or ends its texts too soon.
        """
        if self.engine.target.num_layers < 2:
            raise SearchError("the model has a single layer, so nothing shallower can draft for it; use another model")
        ratings = DraftSearch(self._evidence, self._removal_evidence, self.costs, list(self.vocabularies)).run()
        finalists = self._finalists(ratings)
        timed = self._benchmark("validation").run(finalists) if finalists[1:] else []
        winner = finalists[max(range(len(timed)), key=lambda index: timed[index].speedup, default=0)]
        adaptive = DraftConfig(winner.candidate, None)
        final = self._benchmark("test").run([winner, adaptive])
        return self._results(ratings, timed, final)

    @cached_property
    def vocabularies(self) -> dict[int, DraftVocabulary]:
        """The draft vocabularies that are tried, by size."""
        whole, end_ids = self.engine.runner.vocabulary_size, self.engine.end_ids
        special = {*end_ids, *self.job.loaded.tokenizer.all_special_ids}  # which every vocabulary has
        counted, source = self._counted
        return {
            size: build_vocabulary(
                self.job.loaded.tokenizer, counted, size, vocabulary_size=whole, end_ids=end_ids, source=source
            )
            for size in (whole // part for part in _VOCABULARY_PARTS)
            if size > 2 * len(special)
        }

    @cached_property
    def _counted(self) -> tuple[list[str], str]:
        """The text in which tokens are counted, and where it came from: the user's, or more of the default."""
        if self.job.recipe.text is not None:
            return [read_text(self.job.recipe.text, "a readable text file", TextError)], self.job.texts.source
        tokenizer = self.job.loaded.tokenizer
        more = default_texts(tokenizer, Sizes(_COUNTED_WINDOWS, 1, 1), self.job.recipe.seed)
        return tokenizer.batch_decode(more.calibration, skip_special_tokens=True), more.source

    @cached_property
    def _written(self) -> list[Text]:
        """What the model writes after calibration prompts, but for texts of a single token.

        Raises:
            SearchError: no others.
        """
        prompts: list[list[int]] = self.job.texts.calibration.tolist()

        def write() -> list[list[int]]:
            with self.job.progress("Writing texts", 1) as advance:
                texts = write_texts(self.engine, prompts, NEW_TOKENS)
                advance()
            return [list(written) for _, written in texts]

        written: list[list[int]] = self.job.journal.remember("texts", "calibration", write)
        texts: list[Text] = [
            (prompt, tokens) for prompt, tokens in zip(prompts, written, strict=True) if len(tokens) > 1
        ]
        if not texts:
            raise SearchError(
                "the model ends each text with its first token, so there is nothing to draft; "
                "give prompts that it has more to say to, by --text FILE"
            )
        return texts

    @cached_property
    def _evidence(self) -> TargetTexts:
        evidence = read_target_texts(self.engine, self._written, list(self.vocabularies.values()), self.job.progress)
        evidence.known_agreements = self.job.journal.of_kind("agreement")
        return evidence

    @cached_property
    def _removal_evidence(self) -> TargetTexts:
        evidence = read_target_texts(
            self.engine, self._written[:_REMOVAL_TEXTS], progress=self.job.progress, every=_EVERY
        )
        evidence.known_losses = self.job.journal.of_kind("loss")
        return evidence

    @cached_property
    def costs(self) -> StepCosts:
        """What the parts of a step cost."""
        parts = list(self.vocabularies.values())
        measured = self.job.journal.remember(
            "costs",
            "measured",
            lambda: self.timer.costs(self.engine, parts, self.job.progress).model_dump(mode="json"),
        )
        return StepCosts.model_validate(measured)

    def _finalists(self, ratings: list[Rating]) -> list[DraftConfig]:
        """The best of the best plans, each at its best number of tokens: at least one."""
        by_plan: dict[str, Rating] = {}
        for rating in ratings:
            by_plan.setdefault(key_of(rating.candidate.plan), rating)
        least = _HOPE / self.costs.plain_seconds()
        first, *others = list(by_plan.values())[:_FINALISTS]
        taken = [first, *(rating for rating in others if rating.best.tokens_per_second >= least)]
        return [DraftConfig(rating.candidate, rating.best.num_speculative_tokens) for rating in taken]

    def _benchmark(self, split: str) -> DraftBenchmark:
        return DraftBenchmark(
            name=split,
            engine=self.engine,
            timer=self.timer,
            journal=self.job.journal,
            prompts=getattr(self.job.texts, split).tolist(),
            new_tokens=NEW_TOKENS,
            vocabularies=self.vocabularies,
            progress=self.job.progress,
        )

    def _results(self, ratings: list[Rating], timed: list[TimedRecord], final: list[TimedRecord]) -> LosslessResults:
        # Where nothing pays, the adaptive policy hardly drafts: a fixed number says more about the draft.
        best = max([record for record in final if record.pays] or final[:1], key=lambda record: record.speedup)
        return LosslessResults(
            **self.job.facts(),
            machine=self.job.machine(self.timer.bandwidth),
            pays=best.pays,
            best=best,
            finalists=timed,
            final=final,
            candidates=[_candidate_record(rating) for rating in ratings],
            aim=_aim(ratings),
            costs=self.costs,
            rounding=self.engine.rounding,
        )


def _candidate_record(rating: Rating) -> CandidateRecord:
    return CandidateRecord(
        draft=draft_record(rating.candidate),
        agreement=rating.agreement,
        break_even=rating.break_even,
        speculation=list(rating.speculation),
    )


def _aim(ratings: list[Rating]) -> AimRecord:
    num_layers = ratings[0].candidate.plan.num_layers
    exits = [rating for rating in ratings if rating.candidate.exit == max(1, round(num_layers / 4))]
    easiest = min(exits, key=lambda rating: 1.0 if rating.break_even is None else rating.break_even)
    return AimRecord(
        exit=easiest.candidate.plan.effective_depth,
        vocabulary=easiest.candidate.vocabulary,
        break_even=easiest.break_even,
    )
