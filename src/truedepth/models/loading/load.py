"""Loading a model by whatever a user may call it: a hub id, a folder, a GGUF file, or an embedded model."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truedepth.errors import ModelLoadError, UsageError
from truedepth.families import family_of
from truedepth.models.loading.embedded import embedded_model, embedded_models
from truedepth.models.loading.quiet import quiet_transformers
from truedepth.records.given import require_type
from truedepth.records.messages import one_line

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from truedepth.models.gguf.file import GgufFile
    from truedepth.models.loading.tensors import CheckpointTensors

GGUF_SUFFIX = ".gguf"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to generate, measure, train, or save with `save_pretrained`.

    Attributes:
        model: a causal language model in eval mode.
        tokenizer: its tokenizer; pads on the left, with the end-of-text token where it has none for padding.
        name: what the user called it.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str

    @property
    def num_layers(self) -> int:
        """Its decoder layers."""
        from truedepth.models.adapters import unwrapped

        return len(family_of(self.model.config).decoder_layers(unwrapped(self.model)))


@dataclass(frozen=True, slots=True)
class _Options:
    dtype: torch.dtype
    device: torch.device
    trust_remote_code: bool


def load(
    source: str | Path, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False
) -> LoadedModel:
    """Load a causal language model and its tokenizer.

    The family, the memory needed and the wholeness of all files are checked before any weights are read.

    Args:
        source: the name of an embedded model (`smollm2-135m`), a folder with a safetensors checkpoint, a
            `.gguf` file, or the id of a model on the Hugging Face hub. An embedded model goes before a folder
            of the same name (write `./name`), and an existing path before a hub id.
        dtype: type of the weights: `float32`, `bfloat16`, `float16`, or `auto`, which is float32 on the CPU
            and a 16-bit type elsewhere.
        device: `auto` (CUDA, else MPS, else CPU) or a torch device such as `cuda:1`.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        UsageError: a `source` that is empty or no text, an unknown dtype, or a device that is not available.
        UnsupportedModelError: a family, GGUF architecture or kind of weights that truedepth cannot work with.
        ModelLoadError: the model cannot be found, is incomplete, truncated or corrupt, or does not fit into
            memory.
    """
    from truedepth.models.loading.placement import resolve_device, resolve_dtype

    source = name_of(source)
    require_type("trust_remote_code", trust_remote_code, bool, "True or False")
    torch_device = resolve_device(device)
    options = _Options(resolve_dtype(dtype, torch_device), torch_device, trust_remote_code)
    path = local_path(source)
    return _load_from_hub(source, options) if path is None else _load_path(path, source, options)


def name_of(source: str | Path) -> str:
    """What a user calls a model, as text.

    Raises:
        UsageError: it is neither text nor a path.
    """
    require_type("the model", source, (str, Path), "an embedded model, a folder, a .gguf file or a hub id, as text")
    return str(source)


def local_path(source: str) -> Path | None:
    """Where on this machine the model is that a user named: a folder or a GGUF file. None: on the hub.

    Raises:
        UsageError: the name is empty.
        ModelLoadError: it is an embedded model that is not installed, a file of another kind, or looks like a
            path and is none.
    """
    if not source.strip():
        raise UsageError("no model was named; give an embedded model, a folder, a .gguf file or a hub id")
    if embedded := embedded_model(source):
        return embedded.require()
    path = Path(source).expanduser()
    if path.is_file() and path.suffix.lower() != GGUF_SUFFIX:
        hint = "give the folder that holds it" if path.suffix == ".safetensors" else "give a folder or a .gguf file"
        raise ModelLoadError(f"{path} is a file that truedepth cannot load by itself; {hint}")
    if path.exists():
        return path
    _refuse_missing(source)
    return None


def load_shapes(source: str | Path, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """A model on the meta device: its configuration and all shapes, without reading weights or fetching them.

    Args:
        source: as for `load`; of a folder or a hub model, `config.json` is enough.

    Raises:
        UsageError: an empty `source`.
        UnsupportedModelError: a family or GGUF architecture that truedepth cannot work with.
        ModelLoadError: the configuration cannot be found, or makes no model.
    """
    from truedepth.models.loading.hub import fetch_config

    source = name_of(source)
    with quiet_transformers():
        path = local_path(source) or fetch_config(source, trust_remote_code=trust_remote_code)
        config, _ = read_model_config(path, trust_remote_code)
        return blank_model(config, trust_remote_code=trust_remote_code)


def read_model_config(path: Path, trust: bool) -> tuple[PreTrainedConfig, GgufFile | None]:
    """The configuration of a checkpoint's folder or a GGUF file, whose family is known; and that file.

    Raises:
        UnsupportedModelError, ModelLoadError: see `read_config`, `read_gguf` and `config_of`.
    """
    from truedepth.models.gguf.architectures import config_of
    from truedepth.models.gguf.file import read_gguf
    from truedepth.models.loading.checkpoint import read_config

    if path.is_dir():
        return read_config(path, trust_remote_code=trust), None
    file = read_gguf(path)
    config = config_of(file)
    family_of(config)
    return config, file


def open_checkpoint(path: Path, config: PreTrainedConfig, trust: bool) -> tuple[PreTrainedModel, CheckpointTensors]:
    """The model of a checkpoint without its weights, and its tensors to be read one by one.

    Where the checkpoint has an LM head of its own, `config` says so afterwards, as transformers loads it.

    Raises:
        ModelLoadError: the configuration makes no model, or weight files are missing, truncated or corrupt.
    """
    from truedepth.models.loading.tensors import open_tensors

    blank = blank_model(config, trust_remote_code=trust)
    tensors = open_tensors(path, blank)
    if config.tie_word_embeddings and tensors.has_own_head(family_of(config)):
        config.tie_word_embeddings = False
        blank = blank_model(config, trust_remote_code=trust)
    return blank, tensors


def _refuse_missing(source: str) -> None:
    """Refuse what looks like a path but is none; of a near miss, name the embedded model."""
    names = [model.name for model in embedded_models()]
    if "/" not in source and (close := difflib.get_close_matches(source.lower(), names, n=1, cutoff=0.7)):
        raise ModelLoadError(f"there is no model '{source}'; did you mean the embedded model '{close[0]}'?")
    if source.startswith((".", "~", os.sep)) or source.lower().endswith(GGUF_SUFFIX) or os.path.isabs(source):
        raise ModelLoadError(
            f"there is no file or folder '{source}'; give an existing folder or .gguf file, "
            f"a hub id such as 'owner/name', or an embedded model: {', '.join(names)}"
        )


def _load_from_hub(name: str, options: _Options) -> LoadedModel:
    from truedepth.models.loading.hub import fetch_config, fetch_model
    from truedepth.models.loading.memory import require_memory

    trust = options.trust_remote_code
    # The configuration first: an unsupported or too large model is refused before its weights are fetched.
    with quiet_transformers():
        config, _ = read_model_config(fetch_config(name, trust_remote_code=trust), trust)
        require_memory(name, blank_model(config, trust_remote_code=trust), options.dtype, options.device)
    return _load_path(fetch_model(name, trust_remote_code=trust), name, options)


def _load_path(path: Path, name: str, options: _Options) -> LoadedModel:
    from truedepth.models.gguf.model import model_of
    from truedepth.models.gguf.tokenizer import tokenizer_of
    from truedepth.models.gguf.weights import check_tensors
    from truedepth.models.loading.checkpoint import load_tokenizer, load_weights
    from truedepth.models.loading.memory import require_memory

    trust = options.trust_remote_code
    with quiet_transformers():
        config, file = read_model_config(path, trust)
        if file is None:
            blank, tensors = open_checkpoint(path, config, trust)
            tensors.require_shapes(blank)
        else:
            blank = blank_model(config, trust_remote_code=trust)
            check_tensors(file, config, {name: tuple(own.shape) for name, own in blank.named_parameters()})
        require_memory(name, blank, options.dtype, options.device)
        if file is None:
            tokenizer = load_tokenizer(path, trust_remote_code=trust)
            model = load_weights(path, config, options.dtype, trust_remote_code=trust)
        else:
            tokenizer = tokenizer_of(file)
            model = model_of(file, config, blank, options.dtype)
        return finish_loading(model, tokenizer, name, options.device)


def blank_model(config: PreTrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """A model on the meta device: all shapes, no memory.

    Raises:
        ModelLoadError: the configuration makes no model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    try:
        with torch.device("meta"):
            blank: PreTrainedModel = auto.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:
        # A configuration can ask for anything, and models fail over it in as many ways.
        raise ModelLoadError(
            f"the configuration makes no {config.model_type} model: {one_line(error)}; "
            "use the model's own, unchanged configuration"
        ) from error
    return blank


def finish_loading(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, device: torch.device
) -> LoadedModel:
    """Move the model to its device, and make it and its tokenizer agree on padding."""
    model.name_or_path = model.config.name_or_path = name
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.generation_config is not None and model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    moved: Any = model
    return LoadedModel(moved.to(device), tokenizer, name)
