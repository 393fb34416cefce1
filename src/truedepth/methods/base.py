"""What a method is: parameters, and one pure function from what it may look at to a plan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from truedepth.plan import DepthPlan


class Evidence(Protocol):
    """What a method may learn about a model from calibration text. All of it comes from one forward pass,
    except `loss`, which reuses that pass up to the first layer that a plan changes.

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

    def loss(self, plan: DepthPlan) -> float:
        """Mean cross-entropy (nats a token) of the calibration text under `plan`. Remembered per plan."""
        ...


class Method(BaseModel, ABC):
    """A published way to choose a plan. Its fields are its parameters; the command line shows them as options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    """The name it is found by, such as `layer-parallel`."""
    summary: ClassVar[str]
    """One line for lists of methods."""
    source: ClassVar[str]
    """The paper, such as `arXiv 2502.02790`."""


class LayerMethod(Method):
    """A method that needs only the number of layers."""

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
