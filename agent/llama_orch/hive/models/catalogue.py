"""The models of the hive: what the cache holds, what is on its way, and files that users named."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from llama_orch.contract import model_ref as refs
from llama_orch.contract.errors import BadRequest, Conflict, NotFound
from llama_orch.contract.hive import DownloadStatus, Model, ModelStatus, Origin
from llama_orch.contract.model_ref import FileRef, HubRef

from . import cache as model_cache
from . import files
from .downloads.download import Download
from .downloads.records import DownloadRecord
from .downloads.service import Downloads

Using = Callable[[str, str, Path], list[str]]


class Models:
    """Read anew at each question.

    `using` tells which workers have a model; while `admitting` is held no worker is admitted.
    """

    def __init__(self, cache: Path, downloads: Downloads, using: Using, admitting: asyncio.Lock) -> None:
        self._cache = cache
        self._downloads = downloads
        self._using = using
        self._admitting = admitting

    async def all(self) -> list[Model]:
        """Every model, whole ones first."""
        cached = await asyncio.to_thread(model_cache.models, self._cache)
        # One that goes on says more than one of the same model that has failed.
        downloads = sorted(self._downloads.all(), key=lambda download: not download.record.is_open)
        on_disk = await asyncio.to_thread(_on_disk, self._cache, [download.record for download in downloads])
        listed = [self._whole(model) for model in cached]
        known = {(model.model_ref, model.filename) for model in listed}
        for download in downloads:
            model = self._of_download(download, on_disk)
            if model is not None and (model.model_ref, model.filename) not in known:
                known.add((model.model_ref, model.filename))
                listed.append(model)
        return listed

    async def delete(self, model_ref: str | None, filename: str | None) -> Model:
        """Delete a model's files; of a file that a user named only the listing goes. Answers what there was.

        Raises BadRequest, NotFound, or Conflict while it is in use. No worker of it is admitted meanwhile, and no
        download of it begins.
        """
        if not model_ref:
            raise BadRequest("model_ref: required in the query, as GET /api/v1/models shows it")
        try:
            ref = refs.parse(model_ref, filename)
        except ValueError as error:
            raise BadRequest(f"model_ref: {error}") from None
        async with self._admitting, self._downloads.beginning:
            return await self._delete(ref, model_ref)

    async def _delete(self, ref: refs.ModelRef, model_ref: str) -> Model:
        model = self._chosen([model for model in await self.all() if self._meant(model, ref)], model_ref)
        if model.workers:
            raise Conflict(
                f"{model.filename} is in use by {len(model.workers)} worker(s): stop them first", workers=model.workers
            )
        if model.status is ModelStatus.DOWNLOADING:
            raise Conflict(f"{model.filename} is being downloaded: cancel the download first")
        if isinstance(ref, HubRef):
            await asyncio.to_thread(self._remove, ref.repo, model)
        await self._downloads.forget(model.model_ref, model.filename)
        return model

    def _remove(self, repo: str, model: Model) -> None:
        for cached in model_cache.models(self._cache):
            if cached.repo == repo and cached.ref.base == model.model_ref and cached.filename == model.filename:
                model_cache.remove(self._cache, cached)

    def _meant(self, model: Model, ref: refs.ModelRef) -> bool:
        if isinstance(ref, FileRef):
            return model.model_ref == ref.base
        return model.model_ref == ref.base and ref.filename in {None, model.filename}

    def _chosen(self, found: list[Model], model_ref: str) -> Model:
        if not found:
            raise NotFound(f"there is no model {model_ref} here; GET /api/v1/models lists them")
        if len(found) > 1:
            names = [model.filename for model in found]
            raise BadRequest(f"filename: {model_ref} has several here: {', '.join(names[:20])}", files=names[:200])
        return found[0]

    def _whole(self, cached: model_cache.CachedModel) -> Model:
        base = cached.ref.base
        return Model(
            model_ref=base,
            filename=cached.filename,
            size_bytes=cached.size_bytes,
            sha256=cached.sha256,
            status=ModelStatus.READY,
            parts=cached.parts,
            workers=self._using(base, cached.filename, cached.path),
            origin=self._origin(base, cached.filename),
        )

    def _origin(self, base: str, filename: str) -> Origin:
        for download in self._downloads.all():
            if download.record.model_ref == base and download.record.filename == filename:
                return download.record.origin
        return "rest"

    def _of_download(self, download: Download, on_disk: set[str]) -> Model | None:
        record = download.record
        if record.model is None:
            status = ModelStatus.READY if download.ready and record.download_id in on_disk else None
        elif record.is_open:
            status = ModelStatus.DOWNLOADING
        else:
            failed = record.status is DownloadStatus.FAILED
            status = ModelStatus.INCOMPLETE if failed and record.download_id in on_disk else None
        if status is None:
            return None
        return Model(
            model_ref=record.model_ref,
            filename=record.filename,
            size_bytes=record.model.size_bytes if record.model else record.size_bytes or 0,
            sha256=record.model.sha256 if record.model else None,
            status=status,
            parts=len(record.model.files) if record.model else 1,
            workers=self._using(record.model_ref, record.filename, self._downloads.path_of(record)),
            origin=record.origin,
        )


def _on_disk(cache: Path, records: list[DownloadRecord]) -> set[str]:
    """The ids of those downloads of which there is something: the file that a user named, or bytes that arrived."""
    found: set[str] = set()
    for record in records:
        if record.model is None:
            there = Path(record.file_path or "").exists()
        else:
            there = record.status is DownloadStatus.FAILED and files.present(cache, record.model) > 0
        if there:
            found.add(record.download_id)
    return found
