"""The tensors of a checkpoint by the names that they have in the model, as transformers loads them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truedepth.errors import ModelLoadError, UnsupportedModelError
from truedepth.models.loading.checkpoint import check_weights, lacks, weight_files
from truedepth.models.private_transformers import stored_names

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from truedepth.families import Family

FLOATS = ("F64", "F32", "F16", "BF16")
"""What weights are stored as, by safetensors' names: a number is a weight, and needs no scale."""

ROWS_AT_ONCE = 8192
"""Rows of two matrices that are compared at once."""


@dataclass(frozen=True)
class CheckpointTensors:
    """A checkpoint whose tensors are read one by one.

    Attributes:
        folder: where it lies.
        files: of each tensor, by its name in the checkpoint.
        names: of each parameter that the checkpoint has, its name in there; tied ones by all of theirs.
    """

    folder: Path
    files: dict[str, Path]
    names: dict[str, str]

    def read(self, name: str) -> Tensor:
        """A parameter by its name in the model, in the type in which it is stored, on the CPU."""
        with self._opened(name) as file:
            tensor: Tensor = file.get_tensor(self.names[name])
        return tensor

    def require(self, blank: PreTrainedModel) -> None:
        """Make sure that all of a model's parameters are there.

        Raises:
            ModelLoadError: some are missing, or have another shape.
        """
        if missing := sorted({name for name, _ in blank.named_parameters()} - set(self.names)):
            raise lacks(self.folder, missing)
        self.require_shapes(blank)

    def require_shapes(self, blank: PreTrainedModel) -> None:
        """Make sure that the parameters that are there have a model's shapes.

        Raises:
            ModelLoadError: one has another.
        """
        for name, parameter in blank.named_parameters():
            shape = tuple(parameter.shape)
            if name in self.names and (found := self._shape(name)) != shape:
                raise ModelLoadError(
                    f"tensor {self.names[name]} in {self.folder} has the shape {found}, but config.json asks for "
                    f"{shape}; use the model's own config.json"
                )

    def has_own_head(self, family: Family) -> bool:
        """Whether there is an LM head that is not the embedding: transformers then ties them in no case."""
        head, embedding = f"{family.head}.weight", f"{family.embedding}.weight"
        if not {head, embedding} <= self.names.keys() or self.names[head] == self.names[embedding]:
            return False
        if self._shape(head) != self._shape(embedding):
            return True
        with self._opened(head) as one, self._opened(embedding) as other:
            parts = one.get_slice(self.names[head]), other.get_slice(self.names[embedding])
            for start in range(0, self._shape(head)[0], ROWS_AT_ONCE):
                rows = [part[start : start + ROWS_AT_ONCE].float() for part in parts]
                if not rows[0].equal(rows[1]):
                    return True
        return False

    def _shape(self, name: str) -> tuple[int, ...]:
        with self._opened(name) as file:
            return tuple(file.get_slice(self.names[name]).get_shape())

    def _opened(self, name: str) -> Any:
        from safetensors import safe_open

        # Opened each time: what has been read of an open file stays in memory as long as it is open.
        return safe_open(self.files[self.names[name]], framework="pt")


def open_tensors(folder: Path, blank: PreTrainedModel) -> CheckpointTensors:
    """The tensors of a checkpoint for a model on the meta device. Reads headers only.

    Raises:
        ModelLoadError: files are missing, truncated or corrupt.
        UnsupportedModelError: parameters are stored as codes of a quantiser, whatever the configuration says.
    """
    from safetensors import safe_open

    check_weights(folder)
    files: dict[str, Path] = {}
    types: dict[str, str] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            files |= dict.fromkeys(file.keys(), path)
            types |= {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    names = stored_names(blank, files)
    if codes := [name for name in names.values() if types[name] not in FLOATS]:
        raise UnsupportedModelError(
            f"the weights in {folder} are quantised: {codes[0]} is stored as {types[codes[0]]}; truedepth needs float "
            "weights: give the original checkpoint, or a GGUF file"
        )
    for tied in _names_of_each(blank):
        for there in [names[name] for name in tied if name in names][:1]:
            names = dict.fromkeys(tied, there) | names
    return CheckpointTensors(folder, files, names)


def _names_of_each(model: PreTrainedModel) -> Iterable[list[str]]:
    """All names of each parameter: of a tied one, several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names.values()
