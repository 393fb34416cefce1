"""Rows of Hugging Face datasets, read by the `datasets` library. Code that comes with a dataset is never run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truedepth.errors import TextError
from truedepth.records.messages import one_line
from truedepth.training.data.sources import DataSource, Where

if TYPE_CHECKING:
    from datasets import Dataset


def dataset_rows(source: DataSource) -> Iterator[tuple[Where, Mapping[str, Any]]]:
    """The rows of the split that a source names, from the hub, the local cache, or a folder.

    A folder is one that `Dataset.save_to_disk` wrote, or one of data files (JSON, CSV, Parquet, text).

    Raises:
        TextError: the `datasets` library is missing, or it cannot read the dataset.
    """
    name = f"dataset {source.dataset}, split {source.split}"
    for number, row in enumerate(_load(source)):
        yield Where(name, "row", number), row


def _load(source: DataSource) -> Dataset:
    try:
        from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
    except ImportError:
        raise TextError(
            "reading Hugging Face datasets needs the package datasets; install it with: pip install 'truedepth[train]'"
        ) from None
    folder = Path(source.dataset or "").expanduser()
    try:
        if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
            loaded = load_from_disk(folder)
            chosen = loaded[source.split] if isinstance(loaded, DatasetDict) else loaded
        else:
            path = str(folder) if folder.is_dir() else str(source.dataset)
            chosen = load_dataset(path, source.subset, split=source.split)
    except Exception as error:
        # The library fails in many ways: no network, no such name, split or configuration, damaged files.
        raise TextError(
            f"cannot read the dataset '{source.dataset}', split '{source.split}': {one_line(error)}; "
            "give its name on the hub or a folder, and one of its splits"
        ) from error
    if not isinstance(chosen, Dataset):
        raise TextError(f"'{source.dataset}', split '{source.split}', is a {type(chosen).__name__}; give one split")
    return chosen
