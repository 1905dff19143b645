"""The files of a model that the hub described, as they are in the cache right now."""

from __future__ import annotations

import contextlib
from pathlib import Path

from llama_orch.contract.model_ref import HubRef

from . import gguf_header, model_cache
from .hub_model import HubFile, Resolved


def present(cache: Path, model: Resolved) -> int:
    """How many bytes of a model are on the disk, whole files and begun ones."""
    count = 0
    for file in model.files:
        part = model_cache.part_file(cache, model.repo, file.etag)
        for path in (part.with_suffix(""), part):
            with contextlib.suppress(OSError):
                count += min(path.stat().st_size, file.size)
                break
    return count


def first(cache: Path, model: Resolved) -> Path:
    """Where the model is, or will be: its first part."""
    return model_cache.repo_folder(cache, model.repo) / "snapshots" / model.commit / model.filename


def ready(cache: Path, model: Resolved) -> bool:
    """Whether every part is there and was checked."""
    folder = model_cache.repo_folder(cache, model.repo) / "snapshots" / model.commit
    return all((folder / file.name).exists() for file in model.files)


def drop_parts(cache: Path, model: Resolved) -> None:
    """Delete what came of files that are not whole."""
    for file in model.files:
        model_cache.part_file(cache, model.repo, file.etag).unlink(missing_ok=True)


def as_resolved(ref: HubRef, cached: model_cache.CachedModel, because: str | None = None) -> Resolved:
    """A model that is in the cache, as if the hub had just described it."""
    names = [str(Path(cached.filename).with_name(name)) for name in gguf_header.part_names(cached.path.name)]
    files = [
        HubFile(name=name, size=path.stat().st_size, etag=path.resolve().name)
        for name in names
        for path in [cached.path.with_name(Path(name).name)]
    ]
    return Resolved(
        repo=ref.repo,
        revision=ref.revision or HubRef.DEFAULT_REVISION,
        commit=cached.commit,
        filename=cached.filename,
        files=files,
        chosen_because=because,
    )
