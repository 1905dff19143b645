"""The files of a model that the hub described, as they are in the cache right now."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from llama_orch.contract.model_ref import HubRef

from . import cache as model_cache
from . import gguf_header
from .hub.description import HubFile, Resolved


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
    return _snapshot(cache, model) / model.filename


def ready(cache: Path, model: Resolved) -> bool:
    """Whether every part is there and was checked."""
    folder = _snapshot(cache, model)
    return all((folder / file.name).exists() for file in model.files)


def parts(cache: Path, model: Resolved) -> list[Path]:
    """Where what came of its files is kept until they are whole."""
    return [model_cache.part_file(cache, model.repo, file.etag) for file in model.files]


def drop_parts(cache: Path, model: Resolved) -> None:
    """Delete what came of files that are not whole."""
    for part in parts(cache, model):
        part.unlink(missing_ok=True)


def _snapshot(cache: Path, model: Resolved) -> Path:
    return model_cache.repo_folder(cache, model.repo) / "snapshots" / model.commit


def as_resolved(ref: HubRef, cached: model_cache.CachedModel, because: str | None = None) -> Resolved:
    """A model that is in the cache, as if the hub had just described it.

    Raises pydantic's ValidationError, a ValueError, where it has a name that we would not have given it.
    """
    names = [str(Path(cached.filename).with_name(name)) for name in gguf_header.part_names(cached.path.name)]
    files = [
        HubFile(name=name, size=path.stat().st_size, etag=_etag(path.resolve().name))
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


def _etag(blob: str) -> str:
    """The hash that a blob has for its name; none of any file where somebody put the file itself there."""
    return blob if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob) else "0" * 40
