"""The schema of `results.json`, written by the main job and read by the report, `show` and anything else.

`schema_version` grows when a key changes meaning or goes away; new keys may appear within a version.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from truedepth.errors import TruedepthError
from truedepth.families import family_of
from truedepth.plan import DepthPlan, Form, Prefill

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from truedepth.evaluation.texts import Texts

SchemaT = TypeVar("SchemaT", bound=BaseModel)

SCHEMA_VERSION = 1
RESULTS_FILE = "results.json"


class _Record(BaseModel):
    # A broken plan can have an infinite perplexity; as a string it stays JSON that every reader takes.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class PlanRecord(_Record):
    """A plan as `truedepth plan --json` prints it."""

    notation: str
    num_layers: int
    stages: list[list[int]]
    effective_depth: int
    layers_used: list[int]
    form: Form
    prefill: Prefill
    all_reduces: int = Field(description="all-reduces of one forward under tensor parallelism")

    @classmethod
    def of(cls, plan: DepthPlan) -> PlanRecord:
        return cls.model_validate(plan.to_dict())

    def to_plan(self) -> DepthPlan:
        return DepthPlan.parse(self.notation, self.num_layers, self.form, self.prefill)


class ModelRecord(_Record):
    name: str = Field(description="what the user called it: a hub id, a folder, a GGUF file or an embedded model")
    family: str
    num_layers: int
    parameters: int
    dtype: str
    device: str

    @classmethod
    def of(cls, model: PreTrainedModel, name: str) -> ModelRecord:
        family = family_of(model.config)
        return cls(
            name=name,
            family=family.name,
            num_layers=len(family.decoder_layers(model)),
            parameters=model.num_parameters(),
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(model.device),
        )


class MachineRecord(_Record):
    processor: str
    cores: int
    memory_bytes: int
    device: str
    bandwidth_bytes_per_second: float = Field(description="measured memory read bandwidth of the device")
    torch: str
    transformers: str
    threads: int


class TargetRecord(_Record):
    kind: Literal["speedup", "max_perplexity_ratio", "depth"]
    value: float


class SpeedupRecord(_Record):
    """Decode tokens per second of the plan divided by that of the unmodified model."""

    target: float | None = Field(description="the speedup asked for; null when the target was another")
    predicted: float = Field(description="from the cost model that the search used")
    measured: float | None = Field(
        description="median of interleaved runs on this machine; null when planning for other hardware"
    )
    low: float | None = Field(description="smallest ratio of a pair of runs")
    high: float | None = Field(description="largest ratio of a pair of runs")


class PerplexityRecord(_Record):
    """On report text, which neither the search nor any method has seen."""

    base: float
    plan: float


class SpeedRecord(_Record):
    """Medians of interleaved runs, batch 1."""

    decode_tokens_per_second: float
    prefill_tokens_per_second: float
    time_to_first_token_seconds: float
    bytes_per_token: int = Field(description="weights and cache read to decode one token")
    bandwidth_share: float = Field(description="achieved bytes per second / measured memory bandwidth, 0 to 1")


class CostRecord(_Record):
    """What the search believed a decode step costs."""

    source: str = Field(description="'measured' or the name of a hardware profile")
    fixed_seconds: float = Field(description="embedding, final norm, LM head, and everything outside the stages")
    layer_seconds: float
    pair_seconds: dict[Form, float] = Field(description="two layers side by side, per form")
    note: str = Field(description="one sentence: whether parallel stages bring time here")


class Peer(_Record):
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


class FrontierPoint(_Record):
    """A plan that the search passed on its way, with figures on validation text."""

    notation: str
    form: Form
    speedup: float = Field(description="predicted by the cost model")
    perplexity: float


class TextRecord(_Record):
    """Where the three disjoint texts came from, in tokens."""

    source: str
    calibration_tokens: int
    validation_tokens: int
    report_tokens: int

    @classmethod
    def of(cls, texts: Texts) -> TextRecord:
        return cls(
            source=texts.source,
            calibration_tokens=texts.calibration.numel(),
            validation_tokens=texts.validation.numel(),
            report_tokens=texts.report.numel(),
        )


class Results(_Record):
    schema_version: int = SCHEMA_VERSION
    truedepth_version: str
    created: str = Field(description="ISO 8601, UTC")
    seconds: float = Field(description="wall time of the job, over all its resumed parts")
    model: ModelRecord
    machine: MachineRecord
    target: TargetRecord
    plan: PlanRecord
    speedup: SpeedupRecord
    perplexity: PerplexityRecord
    kl: float = Field(description="mean KL(base || plan) in nats a token, on report text")
    agreement: float = Field(description="share of report tokens whose most likely next token is unchanged")
    base_speed: SpeedRecord | None
    plan_speed: SpeedRecord | None
    cost: CostRecord
    peers: list[Peer]
    frontier: list[FrontierPoint]
    influence: list[float] = Field(description="block influence 1 - cos(x_l, x_{l+1}) of each layer")
    text: TextRecord

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts, as in the file; infinities are strings there."""
        plain: dict[str, Any] = json.loads(self.model_dump_json())
        return plain

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a `results.json`.

        Raises:
            TruedepthError: the file is missing, is not JSON, or has another schema.
        """
        return read_record(path, cls, f"a results file of schema {SCHEMA_VERSION}", "truedepth optimize")


def read_record(path: Path, schema: type[SchemaT], kind: str, command: str) -> SchemaT:
    """Read what a job has written.

    Args:
        kind: what the file should be, for the error.
        command: what writes such a file.

    Raises:
        TruedepthError: the file is missing, is not JSON, or has another schema.
    """
    try:
        return schema.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise TruedepthError(f"cannot read {path}: {error.strerror}; give a finished run's folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise TruedepthError(f"{path} is not {kind}: {error}; run '{command}' again") from None
