"""Hugging Face datasets, read by the `datasets` library. Code that comes with a dataset is never run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from truedepth.errors import TextError
from truedepth.records.messages import one_line

if TYPE_CHECKING:
    from datasets import Dataset


def load_split(name: str, subset: str | None, split: str) -> Dataset:
    """A split of a dataset, from the hub, the local cache, or a folder.

    A folder is one that `Dataset.save_to_disk` wrote, or one of data files (JSON, CSV, Parquet, text).

    Raises:
        TextError: the `datasets` library is missing, or it cannot read the dataset.
    """
    try:
        from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
    except ImportError:
        raise TextError(
            "reading Hugging Face datasets needs the package datasets; install it with: pip install datasets"
        ) from None
    folder = Path(name).expanduser()
    try:
        if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
            loaded = load_from_disk(folder)
            chosen = loaded[split] if isinstance(loaded, DatasetDict) else loaded
        else:
            chosen = load_dataset(str(folder) if folder.is_dir() else name, subset, split=split)
    except Exception as error:
        # The library fails in many ways: no network, no such name, split or configuration, damaged files.
        raise TextError(
            f"cannot read the dataset '{name}', split '{split}': {one_line(error)}; "
            "give its name on the hub or a folder, and one of its splits"
        ) from error
    if not isinstance(chosen, Dataset):
        raise TextError(f"'{name}', split '{split}', is a {type(chosen).__name__}; give one split")
    return chosen
