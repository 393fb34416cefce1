"""What a method is: parameters, and one pure function from what it may look at to a plan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from truedepth.errors import MethodError
from truedepth.methods.hints import did_you_mean
from truedepth.plan import DepthPlan


class Evidence(Protocol):
    """What a method may look at of a model on calibration text. All of it comes from one forward pass,
    except `losses`, which reuses that pass up to the first layer that plans change.

    `truedepth.evaluation.calibration.Calibration` is the implementation for a real model.
    """

    @property
    def num_layers(self) -> int:
        """Number of layers of the source model."""
        ...

    def block_influence(self) -> Sequence[float]:
        """Per layer l: mean over tokens of 1 - cos(x_l, x_{l+1}); x_l is the input of layer l."""
        ...

    def angular_distance(self, block: int) -> Sequence[float]:
        """Per start l (0 to num_layers - block): mean over tokens of arccos(cos(x_l, x_{l+block})) / pi."""
        ...

    def losses(self, plans: Sequence[DepthPlan]) -> Sequence[float]:
        """`loss` of several plans; the stages that plans begin with alike run once for all of them.

        Ask for as many plans at once as are known: it is faster, and it is the step whose progress is shown.
        """
        ...


class Method(BaseModel, ABC):
    """A published way to choose a plan. Its fields are its parameters, which the command line shows
    as options.

    Raises:
        MethodError: a parameter that is unknown, missing, of the wrong type or out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    """The name it is found by, such as `layer-parallel`."""
    summary: ClassVar[str]
    """One line for lists of methods."""
    source: ClassVar[str]
    """The paper, such as `arXiv 2502.02790`."""
    either: ClassVar[tuple[str, ...]] = ()
    """Parameters of which exactly one must be given; their default is None."""

    def __init__(self, **parameters: Any) -> None:
        try:
            super().__init__(**parameters)
        except ValidationError as error:
            raise MethodError(_explain(type(self), error)) from None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in self.either if getattr(self, name) is not None]
        if self.either and len(given) != 1:
            problem = "are both given" if given else "are both missing"
            names = " and ".join(f"'{name}'" for name in self.either)
            raise MethodError(f"method '{self.name}': {names} {problem}; give exactly one of them")
        return self


class LayerMethod(Method):
    """A method that needs only the number of layers."""

    shorthand: ClassVar[str | None] = None
    """The parameter that VALUE in the shorthand `NAME@VALUE` gives; None: one value is not enough."""

    @abstractmethod
    def plan(self, num_layers: int) -> DepthPlan:
        """The plan for a model of `num_layers` layers.

        Raises:
            MethodError: the parameters do not fit the number of layers.
        """


class EvidenceMethod(Method):
    """A method that looks at how a model treats calibration text."""

    @abstractmethod
    def plan(self, evidence: Evidence) -> DepthPlan:
        """The plan for the model that `evidence` describes.

        Raises:
            MethodError: the parameters do not fit the number of layers.
        """


def _explain(method: type[Method], error: ValidationError) -> str:
    """A validation error as one plain paragraph."""
    fields = method.model_fields
    problems = []
    for detail in error.errors(include_url=False):
        parameter = ".".join(map(str, detail["loc"]))
        message = detail["msg"].removeprefix("Value error, ")
        if not detail["loc"]:
            problems.append(message)
        elif detail["type"] == "extra_forbidden":
            problems.append(f"there is no parameter '{parameter}'{did_you_mean(parameter, fields)}")
        elif detail["type"] == "missing":
            problems.append(f"parameter '{parameter}' is missing")
        else:
            problems.append(f"parameter '{parameter}' is {detail['input']!r}: {message}")
    return f"method '{method.name}': {'; '.join(problems)}; its parameters are: {', '.join(fields) or 'none'}"
