"""The schema of `results.json`, written by the main job and read by the report, `show` and anything else."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from truedepth.evaluation.texts import TextRecord
from truedepth.measuring.costs import CostRecord
from truedepth.measuring.machine import MachineRecord
from truedepth.measuring.speed import SpeedRecord
from truedepth.models.record import ModelRecord
from truedepth.plan import Form, Prefill
from truedepth.plan.record import PlanRecord
from truedepth.records.schema import Record, ResultsFile

SCHEMA_VERSION = 2
RESULTS_FILE = "results.json"


class JobResults(ResultsFile):
    """What both jobs of `optimize` write."""

    schema_version: int
    truedepth_version: str
    created: str = Field(description="ISO 8601, UTC")
    seconds: float = Field(description="wall time of the job, over all its resumed parts")
    model: ModelRecord
    machine: MachineRecord
    text: TextRecord = Field(description="what was judged on; for a draft, the prompts")


class TargetRecord(Record):
    kind: Literal["speedup", "max_perplexity_ratio", "depth"]
    value: float


class SpeedupRecord(Record):
    """Decode tokens per second of the plan divided by that of the unmodified model."""

    target: float | None = Field(description="the speedup asked for; null when the target was another")
    predicted: float = Field(description="from the cost model that the search used")
    measured: float | None = Field(
        description="median of interleaved runs on this machine; null when planning for other hardware"
    )
    low: float | None = Field(description="smallest ratio of a pair of runs")
    high: float | None = Field(description="largest ratio of a pair of runs")


class PerplexityRecord(Record):
    """On test text, which neither the search nor any method has seen."""

    base: float
    plan: float


class Peer(Record):
    """One published method at the same number of layers (or stages), measured alike."""

    method: str
    notation: str
    form: Form
    prefill: Prefill
    speedup: float = Field(description="measured where `measured`, else predicted")
    measured: bool
    perplexity: float
    kl: float = Field(description="mean KL(base || plan) in nats a token")
    agreement: float = Field(description="share of tokens whose most likely next token is the base model's")


class FrontierPoint(Record):
    """A plan that the search passed on its way, with figures on validation text."""

    notation: str
    form: Form
    speedup: float = Field(description="predicted by the cost model")
    perplexity: float


class Results(JobResults):
    described_as: ClassVar[str] = f"a results file of schema {SCHEMA_VERSION}"
    written_by: ClassVar[str] = "truedepth optimize"

    schema_version: int = SCHEMA_VERSION
    target: TargetRecord
    plan: PlanRecord
    speedup: SpeedupRecord
    perplexity: PerplexityRecord
    kl: float = Field(description="mean KL(base || plan) in nats a token, on test text")
    agreement: float = Field(description="share of test tokens whose most likely next token is unchanged")
    base_speed: SpeedRecord | None
    plan_speed: SpeedRecord | None
    cost: CostRecord
    peers: list[Peer]
    frontier: list[FrontierPoint]
    influence: list[float] = Field(description="block influence 1 - cos(x_l, x_{l+1}) of each layer")
