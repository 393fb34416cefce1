"""The depth plan: which layers run, in which order, and which of them run side by side.

Every method of the field is a choice of this one value. The notation, used by the command line, YAML
files, reports and error messages alike, lists the stages in order:

    0-19 (20|21) (22|23) 28 29      layers 20 and 21 side by side, then 22 and 23; 24 to 27 are skipped
    0-9 (10+11) 12-29               layers 10 and 11 replaced by one layer with the mean of their weights

Layers are decoder layers of the source checkpoint, numbered from 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from truedepth.errors import PlanError
from truedepth.records.given import require_type

Form = Literal["lp", "par"]
"""How a group runs on its input x, with A = norm + attention and F = norm + FFN (residuals excluded):

`lp` (arXiv 2502.02790):  u = x + sum A_i(x);  y = u + sum F_i(u)
`par`:                    y = x + sum [A_i(x) + F_i(x + A_i(x))]
"""

Prefill = Literal["plan", "full"]
"""`plan`: the prompt runs the plan too. `full`: the prompt runs every layer, decoding runs the plan."""

FORMS: tuple[Form, ...] = get_args(Form)
PREFILLS: tuple[Prefill, ...] = get_args(Prefill)

MOST_LAYERS = 10_000
"""What is taken for a model's layers at most; a mistaken number could ask for endless memory."""

_TOKEN = re.compile(r"\([^()]*\)|[^\s()]+|[()]")
_NUMBER = re.compile(r"[0-9]{1,9}")
_RANGE = re.compile(r"([0-9]{1,9})-([0-9]{1,9})")


@dataclass(frozen=True, slots=True)
class Stage:
    """The layers evaluated on the same input: one layer, a group side by side, or a merged layer.

    Attributes:
        layers: layer numbers, each at most once.
        merged: the stage is one layer whose weights are the mean of the weights of `layers`.
    """

    layers: tuple[int, ...]
    merged: bool = False

    def __post_init__(self) -> None:
        if not self.layers:
            raise PlanError("a stage has no layers; give each stage at least one layer number")
        if len(set(self.layers)) != len(self.layers):
            raise PlanError(f"stage '{self}' names a layer twice; name each layer once")
        if min(self.layers) < 0:
            raise PlanError(f"stage '{self}' has a negative layer number; layers count from 0")
        if self.merged and len(self.layers) < 2:
            raise PlanError(f"stage '{self}' merges a single layer; a merge needs at least two layers")

    @property
    def is_group(self) -> bool:
        """Whether several layers run side by side here."""
        return len(self.layers) > 1 and not self.merged

    @property
    def layers_run(self) -> tuple[int, ...]:
        """The layers that are called, and have cache entries: of a merged stage the first alone."""
        return self.layers[:1] if self.merged else self.layers

    def __str__(self) -> str:
        if len(self.layers) == 1:
            return str(self.layers[0])
        return f"({('+' if self.merged else '|').join(map(str, self.layers))})"


@dataclass(frozen=True, slots=True)
class DepthPlan:
    """An immutable plan for a model of `num_layers` layers.

    Attributes:
        stages: the stages in the order in which they run.
        num_layers: number of layers of the source model.
        form: how groups run (see `Form`).
        prefill: whether the prompt runs the plan or every layer (see `Prefill`).

    Raises:
        PlanError: no stages, a layer used twice or out of range, an unknown form or prefill.
    """

    stages: tuple[Stage, ...]
    num_layers: int
    form: Form = "lp"
    prefill: Prefill = "plan"

    def __post_init__(self) -> None:
        _check_layers(self.num_layers)
        if self.form not in FORMS:
            raise PlanError(f"unknown form '{self.form}'; choose one of: {', '.join(FORMS)}")
        if self.prefill not in PREFILLS:
            raise PlanError(f"unknown prefill '{self.prefill}'; choose one of: {', '.join(PREFILLS)}")
        if not self.stages:
            raise PlanError("the plan is empty; it needs at least one stage, such as '0-3 (4|5)'")
        seen: dict[int, Stage] = {}
        for stage in self.stages:
            for layer in stage.layers:
                if layer >= self.num_layers:
                    raise PlanError(
                        f"stage '{stage}' uses layer {layer}, but the model has {self.num_layers} layers "
                        f"(0 to {self.num_layers - 1})"
                    )
                if layer in seen:
                    raise PlanError(
                        f"stage '{stage}' uses layer {layer}, which stage '{seen[layer]}' already runs; "
                        "each layer runs at most once"
                    )
                seen[layer] = stage
        if self.prefill == "full" and any(stage.merged for stage in self.stages):
            raise PlanError("a plan with merged layers cannot prefill every layer; use prefill 'plan'")

    @classmethod
    def full(cls, num_layers: int) -> DepthPlan:
        """The unmodified model: every layer, one after the other.

        Raises:
            PlanError: a number of layers that no model has.
        """
        _check_layers(num_layers)
        return cls.of_layers(range(num_layers), num_layers)

    @classmethod
    def of_layers(cls, layers: Iterable[int], num_layers: int, prefill: Prefill = "plan") -> DepthPlan:
        """The plan that runs just `layers`, one after the other, in the order given."""
        return cls(tuple(Stage((layer,)) for layer in layers), num_layers, prefill=prefill)

    @classmethod
    def parse(cls, notation: str, num_layers: int, form: Form = "lp", prefill: Prefill = "plan") -> DepthPlan:
        """Read the notation of this module's docstring.

        Raises:
            PlanError: naming the token that is wrong and the column where it starts.
        """
        require_type("the plan", notation, str, "a notation such as '0-3 (4|5)'", PlanError)
        _check_layers(num_layers)
        stages: list[Stage] = []
        used: set[int] = set()
        for match in _TOKEN.finditer(notation):
            token, column = match.group(), match.start() + 1
            try:
                for stage in _stages_of(token, num_layers):
                    _refuse_reuse(stage, used)
                    used.update(stage.layers)
                    stages.append(stage)
            except PlanError as error:
                raise PlanError(f"plan '{notation}', token '{token}' at column {column}: {error}") from None
        return cls(tuple(stages), num_layers, form, prefill)

    @property
    def notation(self) -> str:
        """The stages in notation; `parse` reads it back to the same stages."""
        return " ".join(_runs(self.stages))

    @property
    def effective_depth(self) -> int:
        """The number of stages."""
        return len(self.stages)

    @property
    def layers_used(self) -> tuple[int, ...]:
        """All layers that some stage runs, ascending."""
        return tuple(sorted(layer for stage in self.stages for layer in stage.layers))

    @property
    def layers_skipped(self) -> tuple[int, ...]:
        """All layers that no stage runs, ascending."""
        return tuple(sorted(set(range(self.num_layers)) - set(self.layers_used)))

    @property
    def groups(self) -> tuple[Stage, ...]:
        """The stages whose layers run side by side."""
        return tuple(stage for stage in self.stages if stage.is_group)

    @property
    def is_full(self) -> bool:
        """Whether this is the unmodified model."""
        return self.stages == DepthPlan.full(self.num_layers).stages

    @property
    def all_reduces(self) -> int:
        """All-reduces of one forward under tensor parallelism.

        Two for a single (or merged) layer and for a group in form `lp`, where the group is one wide layer;
        one for a group in form `par` when each rank owns whole layers.
        """
        return sum(1 if stage.is_group and self.form == "par" else 2 for stage in self.stages)

    def common_prefix(self, other: DepthPlan) -> int:
        """How many leading stages the two plans have in common; groups only where they run in the same form."""
        count = 0
        for own, its in zip(self.stages, other.stages, strict=False):
            if own != its or (own.is_group and self.form != other.form):
                break
            count += 1
        return count

    def with_form(self, form: Form) -> DepthPlan:
        """The same stages with groups run in another form."""
        return replace(self, form=form)

    def to_dict(self) -> dict[str, Any]:
        """What `truedepth plan --json` prints: plain numbers, strings and lists."""
        return {
            "notation": self.notation,
            "num_layers": self.num_layers,
            "stages": [list(stage.layers) for stage in self.stages],
            "effective_depth": self.effective_depth,
            "layers_used": list(self.layers_used),
            "form": self.form,
            "prefill": self.prefill,
            "all_reduces": self.all_reduces,
        }

    def __str__(self) -> str:
        return self.notation


def _check_layers(num_layers: Any) -> None:
    """Refuse a number of layers that no model has, before plans are made for it."""
    require_type("the number of layers", num_layers, int, "a whole number", PlanError)
    if num_layers > MOST_LAYERS:
        raise PlanError(f"the model has {num_layers} layers; plans are made for at most {MOST_LAYERS}")


def _stages_of(token: str, num_layers: int) -> Iterator[Stage]:
    """The stages that one token of the notation stands for."""
    if token.startswith("(") and token.endswith(")") and len(token) > 1:
        inside = token[1:-1]
        if "|" in inside and "+" in inside:
            raise PlanError("a group is either side by side ('|') or merged ('+'), not both")
        separator = "+" if "+" in inside else "|"
        parts = [part.strip() for part in inside.split(separator)]
        if len(parts) < 2 or not all(_NUMBER.fullmatch(part) for part in parts):
            raise PlanError("a group is written '(4|5)' or '(4+5)', with at least two layer numbers")
        layers = tuple(_in_range(int(part), num_layers) for part in parts)
        yield Stage(layers, merged=separator == "+")
    elif _NUMBER.fullmatch(token):
        yield Stage((_in_range(int(token), num_layers),))
    elif match := _RANGE.fullmatch(token):
        first, last = (_in_range(int(number), num_layers) for number in match.groups())
        if last < first:
            raise PlanError("a range runs upwards; to run layers in another order, list them one by one")
        yield from (Stage((layer,)) for layer in range(first, last + 1))
    else:
        raise PlanError("expected a layer '7', a range '0-6', a group '(7|8)' or a merge '(7+8)'")


def _in_range(layer: int, num_layers: int) -> int:
    if layer >= num_layers:
        raise PlanError(f"layer {layer} is out of range: the model has {num_layers} layers (0 to {num_layers - 1})")
    return layer


def _refuse_reuse(stage: Stage, used: set[int]) -> None:
    for layer in stage.layers:
        if layer in used:
            raise PlanError(f"layer {layer} appears twice; each layer runs at most once")


def _runs(stages: tuple[Stage, ...]) -> Iterator[str]:
    """Stages as tokens, with three or more consecutive single layers written as a range."""
    start = 0
    while start < len(stages):
        end = start + 1
        if len(stages[start].layers) == 1:
            while end < len(stages) and stages[end].layers == (stages[end - 1].layers[0] + 1,):
                end += 1
        if end - start >= 3:
            yield f"{stages[start]}-{stages[end - 1]}"
        else:
            yield from map(str, stages[start:end])
        start = end
