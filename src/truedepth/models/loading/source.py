"""What an export is made from: a checkpoint or a GGUF file, whose tensors are read one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from truedepth.errors import OutputError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from truedepth.families import Ability, Family
    from truedepth.models.gguf.file import GgufFile


@dataclass(frozen=True)
class Source:
    """A model on disk, opened but not loaded.

    Attributes:
        name: what the user called it.
        path: its folder, or its GGUF file.
        config, family: what it is.
        blank: its parameters on the meta device by name, tied ones once.
        read: gives one of them, in the type in which it is stored (float32 from GGUF), on the CPU.
        tokenizer: None where `file` has it.
        file: the GGUF file, where it is one.
    """

    name: str
    path: Path
    config: PreTrainedConfig
    family: Family
    blank: dict[str, Tensor]
    read: Callable[[str], Tensor]
    tokenizer: PreTrainedTokenizerBase | None = None
    file: GgufFile | None = None

    def require_apart(self, output: Path) -> None:
        """Refuse to write into the model itself.

        Raises:
            OutputError: `output` is its file, or lies in its folder.
        """
        here, there = self.path.resolve(), output.resolve()
        if there == here or (here.is_dir() and here in there.parents):
            how = "lies in" if here.is_dir() else "is"
            raise OutputError(f"{output} {how} the model itself ({self.path}); write to another place")

    def own_tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, read from `file` where that has it."""
        from truedepth.models.gguf.tokenizer import tokenizer_of

        if self.tokenizer is not None:
            return self.tokenizer
        assert self.file is not None  # a source without a tokenizer is a GGUF file
        return tokenizer_of(self.file)


def open_source(source: str, ability: Ability, *, trust_remote_code: bool = False) -> Source:
    """Open whatever `truedepth.load` takes, without reading its weights.

    Args:
        ability: what the family must be able to do; asked before weights are fetched or looked at.

    Raises:
        UsageError, UnsupportedModelError, ModelLoadError: as `truedepth.load`; also a family that lacks the
            ability.
    """
    from truedepth.families import family_of
    from truedepth.models.gguf import weights
    from truedepth.models.loading import checkpoint
    from truedepth.models.loading.load import blank_model, local_path, open_checkpoint, read_model_config
    from truedepth.models.loading.quiet import quiet_transformers

    trust = trust_remote_code
    with quiet_transformers():
        path = local_path(source) or _fetched(source, ability, trust)
        config, file = read_model_config(path, trust)
        family = family_of(config)
        family.require(ability)
        if file is None:
            blank, tensors = open_checkpoint(path, config, trust)
            tensors.require(blank)
            read: Callable[[str], Tensor] = tensors.read
            tokenizer = checkpoint.load_tokenizer(path, trust_remote_code=trust)
        else:
            blank, tokenizer = blank_model(config, trust_remote_code=trust), None
            shapes = {name: tuple(parameter.shape) for name, parameter in blank.named_parameters()}
            read = weights.tensor_reader(file, config, shapes)
        return Source(source, path, config, family, dict(blank.named_parameters()), read, tokenizer, file)


def _fetched(name: str, ability: Ability, trust: bool) -> Path:
    """The folder of a hub model; its configuration is checked before the weights are fetched."""
    from truedepth.families import family_of
    from truedepth.models.loading.checkpoint import read_config
    from truedepth.models.loading.hub import fetch_config, fetch_model

    family_of(read_config(fetch_config(name, trust_remote_code=trust), trust_remote_code=trust)).require(ability)
    return fetch_model(name, trust_remote_code=trust)
