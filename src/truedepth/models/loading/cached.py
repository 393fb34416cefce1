"""Models of the Hugging Face hub that are in the local cache already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A model in the cache that `load` can read.

    Attributes:
        name: its hub id.
        size_bytes: of all its cached files.
        path: the folder of its newest snapshot.
    """

    name: str
    size_bytes: int
    path: Path


def cached_models() -> tuple[CachedModel, ...]:
    """Hub models with safetensors weights in the local cache, by name. Empty where there is no cache."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return ()
    found = []
    for repository in repositories:
        snapshots = [
            revision
            for revision in repository.revisions
            if any(file.file_name.endswith(".safetensors") for file in revision.files)
        ]
        if repository.repo_type == "model" and snapshots:
            newest = max(snapshots, key=lambda revision: revision.last_modified)
            found.append(CachedModel(repository.repo_id, repository.size_on_disk, newest.snapshot_path))
    return tuple(sorted(found, key=lambda model: model.name))
