"""A transformers checkpoint in a folder: configuration, weights and tokenizer, each checked before use.

Only safetensors weights are read: pickle files (`.bin`, `.pt`) can run code.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truedepth.errors import ModelLoadError, UnsupportedModelError
from truedepth.models.configuration import ALWAYS, check_numbers
from truedepth.records.json_files import read_json
from truedepth.records.messages import listed, one_line

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

WIDE_PREFIX = "truedepth_"
"""Model types of checkpoints with wide layers: the source's model type after this."""
CONFIG, ADAPTER, GENERATION_CONFIG = "config.json", "adapter_config.json", "generation_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
COUNTED = {
    "num_hidden_layers": re.compile(r"(?:^|\.)layers\.(\d+)\."),
    "num_experts": re.compile(r"\.experts\.(\d+)\."),
    "num_local_experts": re.compile(r"\.experts\.(\d+)\."),
}
"""What a checkpoint's tensors have in their names, by what its configuration calls the number of them."""
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)


def read_config(folder: Path, *, trust_remote_code: bool) -> PreTrainedConfig:
    """The configuration of a checkpoint.

    Raises:
        ModelLoadError: `config.json` is missing or malformed, has a number that cannot be or more layers than the
            weights, or the folder holds an adapter.
        UnsupportedModelError: the family is unknown, or the weights are quantised.
    """
    from transformers import AutoConfig, PreTrainedConfig

    from truedepth.families import family_of

    if (folder / ADAPTER).is_file():
        # transformers would load the adapter too, and where peft is not installed leave it out.
        raise ModelLoadError(_about_adapter(folder))
    raw = _read_object(folder, CONFIG)
    if not isinstance(raw.get("model_type"), str):
        raise ModelLoadError(f"{folder / CONFIG} has no 'model_type'; it is not the configuration of a model")
    # First of all: transformers may not know the type, or want to run the model's own code for it.
    family_of(PreTrainedConfig.from_dict({"model_type": raw["model_type"]}))
    if raw["model_type"].startswith(WIDE_PREFIX):
        import_module("truedepth.models.modeling_truedepth")  # which registers it
    if raw.get("quantization_config"):
        raise UnsupportedModelError(
            f"the weights in {folder} are quantised, as '{CONFIG}' says; truedepth needs float weights: "
            "give the original checkpoint, or a GGUF file"
        )
    known: Any = AutoConfig.for_model(raw["model_type"])  # it keeps, and leaves alone, what is not of its type
    own = {name: value for name, value in raw.items() if hasattr(known, name) or name in ALWAYS}
    check_numbers(own, str(folder / CONFIG), _stored(folder))
    config: PreTrainedConfig = _read(AutoConfig, folder, f"{folder / CONFIG} is malformed", trust_remote_code)
    return config


def _about_adapter(folder: Path) -> str:
    """What a folder with an adapter is, and how to come to a model of it."""
    settings = _read_object(folder, ADAPTER)
    base = settings.get("base_model_name_or_path") or "its base model"
    adapter = f"PEFT adapter of kind {settings['peft_type']}" if "peft_type" in settings else "PEFT adapter"
    return (
        f"{folder} holds a {adapter} for {base}, not a model ({ADAPTER}). In Python, load the base model by itself and "
        f"put the adapter on it: peft.PeftModel.from_pretrained(truedepth.load(base).model, {str(folder)!r}). For "
        "the command line, merge the two into a folder of their own with its merge_and_unload().save_pretrained(...), "
        "and save the tokenizer there too"
    )


def check_weights(folder: Path) -> None:
    """Make sure that all weight files are there and whole. Reads their headers only.

    Raises:
        ModelLoadError: files are missing, truncated or corrupt, or there are only pickle files.
    """
    for file in weight_files(folder):
        _names_in(file)


def lacks(folder: Path, missing: list[str]) -> ModelLoadError:
    """The error to raise where tensors are missing."""
    return ModelLoadError(
        f"the weights in {folder} lack {len(missing)} of the model's tensors: {listed(missing)}; "
        "the checkpoint is incomplete, or its config.json is of another model"
    )


def load_weights(
    folder: Path, config: PreTrainedConfig, dtype: torch.dtype, *, trust_remote_code: bool
) -> PreTrainedModel:
    """The causal language model of a checkpoint, on the CPU, in eval mode.

    Raises:
        ModelLoadError: transformers cannot load it, or weights are missing or have the wrong shape.
    """
    from transformers import AutoModelForCausalLM

    _check_generation(folder)
    model, info = _read(
        AutoModelForCausalLM,
        folder,
        f"cannot load the model in {folder}",
        trust_remote_code,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        # Reported below; transformers' own error points to a log that is not shown.
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    # transformers fills what is missing with random numbers and only warns.
    if missing := sorted(info["missing_keys"]):
        raise lacks(folder, missing)
    if wrong := sorted(info["mismatched_keys"]):
        name, stored, asked = wrong[0]
        raise ModelLoadError(
            f"{len(wrong)} tensors in {folder} have another shape than config.json asks for, such as {name}: "
            f"{tuple(stored)} in the file, {tuple(asked)} in the model; use the model's own config.json"
        )
    loaded: PreTrainedModel = model
    return loaded


def _check_generation(folder: Path) -> None:
    """Refuse a damaged generation configuration: transformers would leave it out, and say nothing."""
    path = folder / GENERATION_CONFIG
    if not _is_there(path):
        return
    for name, value in _read_object(folder, GENERATION_CONFIG).items():
        ids = value if isinstance(value, list) else [value]
        if name in TOKEN_IDS and not all(token is None or type(token) is int for token in ids):
            raise ModelLoadError(f"{path} says {name} {value!r}, which must be a token's number; download it again")


def load_tokenizer(folder: Path, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint.

    Raises:
        ModelLoadError: it is missing or cannot be read.
    """
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelLoadError(
            f"{folder} has no tokenizer (none of {', '.join(TOKENIZER_FILES)}); "
            "copy the tokenizer files of the original model into it"
        )
    if _is_there(folder / TOKENIZER_CONFIG):
        _read_object(folder, TOKENIZER_CONFIG)
    failure = f"the tokenizer in {folder} cannot be read"
    tokenizer: PreTrainedTokenizerBase = _read(AutoTokenizer, folder, failure, trust_remote_code)
    return tokenizer


def _read(auto: Any, folder: Path, failure: str, trust_remote_code: bool, **options: Any) -> Any:
    try:
        return auto.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True, **options)
    except Exception as error:  # each checks itself with exceptions of many classes
        raise ModelLoadError(f"{failure}: {one_line(error)}") from error


def weight_files(folder: Path) -> list[Path]:
    """The files of a checkpoint's weights, in the order in which transformers reads them.

    Raises:
        ModelLoadError: files are missing, or there are only pickle files.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise _no_weights(folder)
    files = [folder / name for name in sorted(set(_weight_map(folder).values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelLoadError(
            f"{folder} lacks {len(missing)} of {len(files)} weight files: {listed(missing)}; download them again"
        )
    return files


def _weight_map(folder: Path) -> dict[str, str]:
    """The file of each tensor, as the index says."""
    names = _read_object(folder, INDEX).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ModelLoadError(f"{folder / INDEX} has no 'weight_map' of tensors to files; download it again")
    if outside := sorted({name for name in names.values() if Path(name).name != name}):
        raise ModelLoadError(
            f"{folder / INDEX} names weight files that are not in its folder: {listed(outside)}; download it again"
        )
    return names


def _no_weights(folder: Path) -> ModelLoadError:
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if pickles:
        return ModelLoadError(
            f"{folder} has its weights only as pickle ({listed(pickles)}), which can run code and "
            "is not read; use a safetensors version of the model, or, if you trust the file, convert it once "
            "with transformers: from_pretrained(folder).save_pretrained(new_folder)"
        )
    return ModelLoadError(f"{folder} has no weights (neither {WEIGHTS} nor {INDEX}); download the whole model")


def _stored(folder: Path) -> dict[str, int]:
    """Of how many layers and experts the weights have tensors, by their names; nothing where they are not here."""
    names: Collection[str] = ()
    if (folder / WEIGHTS).is_file():
        names = _names_in(folder / WEIGHTS)
    elif (folder / INDEX).is_file():
        names = _weight_map(folder)
    counts = {
        key: len({match[1] for name in names if (match := pattern.search(name))}) for key, pattern in COUNTED.items()
    }
    return {key: count for key, count in counts.items() if count}


def _names_in(file: Path) -> list[str]:
    """The tensors in a weight file, which is whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            return list(opened.keys())
    except SafetensorError as error:
        raise ModelLoadError(
            f"{file} is truncated or corrupt: {one_line(error)}; the file has {file.stat().st_size} bytes. "
            "Download it again"
        ) from None
    except OSError as error:
        raise ModelLoadError(f"cannot read {file}: {error.strerror or error}; check its permissions") from None


def _read_object(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not _is_there(path):
        raise ModelLoadError(f"{folder} has no {name}; {_what_instead(folder)}")
    value = read_json(path, ModelLoadError, "download it again")
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} is not a JSON object; download it again")
    return value


def _is_there(path: Path) -> bool:
    """Whether there is such a name, be it a link that leads nowhere."""
    return path.exists() or path.is_symlink()


def _what_instead(folder: Path) -> str:
    """What to do about a folder that holds no checkpoint."""
    if files := sorted(file.name for file in folder.glob("*.gguf")):
        return f"to load the GGUF file in it, give its path: {folder / files[0]}"
    return "give a folder that save_pretrained wrote, or a .gguf file"
