"""The schema of `lossless.json`, written by the job that finds a draft and read by its report."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from truedepth.measuring.step_costs import StepCosts
from truedepth.plan import DepthPlan, Form
from truedepth.records.schema import Record
from truedepth.search.plan_results import JobResults

SCHEMA_VERSION = 2
LOSSLESS_FILE = "lossless.json"

LEAST_RUNS = 3
"""Fewer runs than this have no spread worth the name, and confirm nothing."""


class DraftRecord(Record):
    """What drafts."""

    method: str = Field(description="where the plan comes from")
    notation: str
    num_layers: int
    form: Form
    exit: int | None = Field(description="how many layers run, where they are the first ones")
    vocabulary: int | None = Field(description="how many tokens the draft's head may propose; null: all")

    def to_plan(self) -> DepthPlan:
        return DepthPlan.parse(self.notation, self.num_layers, self.form)


class SpeculationRecord(Record):
    """What a draft brings at one number of drafted tokens, expected from agreement and costs."""

    num_speculative_tokens: int = Field(description="tokens drafted in a round")
    accepted: float = Field(description="tokens accepted in a round, on average")
    tokens_per_second: float


class CandidateRecord(Record):
    draft: DraftRecord
    agreement: float = Field(description="share of tokens for which the draft's most likely token is the model's")
    break_even: float | None = Field(
        description="agreement from which the draft pays; null if it would not even if all tokens were accepted"
    )
    speculation: list[SpeculationRecord] = Field(description="by the number of drafted tokens, ascending")

    @property
    def best(self) -> SpeculationRecord:
        return max(self.speculation, key=lambda record: record.tokens_per_second)


class TimedRecord(Record):
    """Speculative decoding with a draft, timed against plain decoding of the same prompts, in turns.

    Speedup is decoded tokens a second over those of the plain run of the same prompt.
    """

    draft: DraftRecord
    num_speculative_tokens: int | None = Field(description="tokens drafted in a round; null: adaptive")
    speedup: float = Field(description="the median over runs")
    low: float
    lower_quartile: float
    high: float
    plain_tokens_per_second: float = Field(description="the median over runs")
    tokens_per_second: float = Field(description="the median over runs")
    rounds: int = Field(description="rounds of drafting in all runs")
    drafted: int = Field(description="tokens drafted in them")
    accepted: int = Field(description="tokens of them that were accepted")
    acceptance_by_position: list[float] = Field(
        description="share of the rounds that accepted their first drafted token, their second, ..., "
        "of those that drafted one"
    )
    runs: int
    same_texts: int = Field(description="runs whose tokens were those of the plain run")

    @property
    def pays(self) -> bool:
        """Whether timing confirms a gain: three runs of four are faster than plain decoding, of enough runs."""
        return self.runs >= LEAST_RUNS and self.lower_quartile > 1


class AimRecord(Record):
    """The exit after a quarter of the layers, where LayerSkip puts it: what training exits should bring about."""

    exit: int
    vocabulary: int | None = Field(description="the draft vocabulary with which it pays most easily; null: all tokens")
    break_even: float | None = Field(description="see `CandidateRecord`")


class LosslessResults(JobResults):
    described_as: ClassVar[str] = f"a {LOSSLESS_FILE} of schema {SCHEMA_VERSION}"
    written_by: ClassVar[str] = "truedepth optimize --lossless"

    schema_version: int = SCHEMA_VERSION
    pays: bool = Field(description="whether timing confirms that the best draft makes decoding faster")
    best: TimedRecord = Field(description="the best draft, timed on test prompts, which nothing was chosen by")
    finalists: list[TimedRecord] = Field(description="drafts that were timed on validation prompts to choose the best")
    final: list[TimedRecord] = Field(
        description="all of test prompts: the best draft with a fixed number of tokens, and adaptive"
    )
    candidates: list[CandidateRecord] = Field(
        description="all drafts considered, that with the most expected tokens a second first"
    )
    aim: AimRecord
    costs: StepCosts
    rounding: str | None = Field(
        default=None,
        description="why drafting may change a token where two are nearly equally likely; null: it changes none",
    )
