"""Models of the Hugging Face hub: fetched into its local cache, from which they load like any folder."""

from __future__ import annotations

from pathlib import Path

from truedepth.errors import ModelLoadError
from truedepth.records.messages import one_line

CONFIG_FILES = ["config.json", "adapter_config.json"]
MODEL_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
CODE_FILES = ["*.py"]
# Other formats of the same weights, which large repositories keep beside them.
UNUSED_FILES = ["*/*", "consolidated*"]


def fetch_config(name: str, *, trust_remote_code: bool) -> Path:
    """A folder with the configuration of a hub model, and its code where that is trusted.

    Raises:
        ModelLoadError: see `fetch_model`.
    """
    return _fetch(name, CONFIG_FILES + CODE_FILES * trust_remote_code)


def fetch_model(name: str, *, trust_remote_code: bool) -> Path:
    """A folder with a hub model, from the cache where it is current or the hub cannot be reached.

    Raises:
        ModelLoadError: the hub has no such model or wants a login, or cannot be reached and the cache does
            not have all of the model.
    """
    return _fetch(name, MODEL_FILES + CODE_FILES * trust_remote_code)


def _fetch(name: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=UNUSED_FILES))
    except HFValidationError:
        raise ModelLoadError(
            f"'{name}' is neither an existing file or folder nor a hub id such as 'owner/name'; check the path"
        ) from None
    except GatedRepoError:
        raise ModelLoadError(
            f"the owner of '{name}' asks you to accept terms first: do so at https://huggingface.co/{name}, "
            "then log in with 'hf auth login'"
        ) from None
    except RepositoryNotFoundError:
        raise ModelLoadError(
            f"the Hugging Face hub has no model '{name}' that you may see; check the spelling, "
            "or log in with 'hf auth login' if it is private. For a local model give an existing path"
        ) from None
    except LocalEntryNotFoundError:
        raise ModelLoadError(
            f"cannot reach the Hugging Face hub, and '{name}' is not, or not wholly, in the local cache; "
            "connect to the internet, or give a local folder, a .gguf file or an embedded model "
            "('truedepth models' lists them)"
        ) from None
    except HfHubHTTPError as error:
        raise ModelLoadError(f"the Hugging Face hub refused '{name}': {one_line(error)}; try again later") from error
    except Exception as error:
        # Network failures of many classes, a full disk, a read-only cache.
        raise ModelLoadError(f"fetching '{name}' from the hub failed: {one_line(error)}") from error
