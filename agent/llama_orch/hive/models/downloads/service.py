"""Downloads: begun once however often they are asked for, cancelled, resumed when the agent starts."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

from llama_orch.contract.common import Problem
from llama_orch.contract.errors import Conflict, NotFound
from llama_orch.contract.hive import Download as DownloadView
from llama_orch.contract.hive import DownloadStatus, Origin
from llama_orch.contract.model_ref import FileRef, HubRef, ModelRef

from ...ordered_writes import OrderedWrites
from ...problems import Failed
from ...settings import HiveSettings
from .. import cache as model_cache
from .. import files, reading
from ..hub.description import Resolved
from . import here
from .download import Download
from .lines import Progress
from .records import KEEP_ENDED, DownloadRecord, DownloadRecords, now
from .source import Source

log = logging.getLogger(__name__)
EVENT_EVERY_S = 0.5
# How long a download's process gets to end.
CANCELLED_S = 10.0


class Downloads:
    """All downloads of the hive."""

    def __init__(
        self, settings: HiveSettings, source: Source, count_bytes: Callable[[int], None] = lambda _: None
    ) -> None:
        self._settings = settings
        self._cache = settings.models_dir
        self._source = source
        self._count_bytes = count_bytes
        self._records = DownloadRecords(settings.state_dir / "downloads")
        self._writes = OrderedWrites()
        self._known: dict[str, Download] = {}
        # Held while it is looked up which downloads there are and a new one begins, and while a model is deleted.
        self.beginning = asyncio.Lock()
        self._at_once = asyncio.Semaphore(settings.max_concurrent_downloads)
        self._questions_at_once = asyncio.Semaphore(4)

    def start(self) -> None:
        """Take up what an earlier run of the agent left, in the running loop."""
        for record in self._records.load():
            download = self._known[record.download_id] = Download(record)
            if record.is_open:
                record.status = DownloadStatus.QUEUED
                download.pace.done = files.present(self._cache, record.model) if record.model else 0
                download.task = asyncio.create_task(self._run(download))
        if self._records.damaged:
            self._drop_unknown_parts()
        self._prune()

    def _drop_unknown_parts(self) -> None:
        """Delete what came of downloads whose records are damaged: nothing else would ever find it."""
        models = (download.record.model for download in self._known.values())
        known = {part for model in models if model for part in files.parts(self._cache, model)}
        for part in model_cache.drop_parts(self._cache, known):
            log.error("%s is what came of a download whose record is damaged: deleted", part.relative_to(self._cache))

    async def stop(self) -> None:
        """End the downloads' processes; the records say that they go on at the next start."""
        tasks = [download.task for download in self._known.values() if download.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # What was being cancelled is so before the next start takes it up again.
        if cancelling := [download.cancelling for download in self._known.values() if download.cancelling is not None]:
            await asyncio.wait(cancelling, timeout=CANCELLED_S)
        await self._writes.settled(within_s=5)

    def all(self) -> list[Download]:
        """Every download that is known, oldest first."""
        return list(self._known.values())

    def get(self, download_id: str) -> Download:
        """One download. Raises NotFound."""
        if download_id not in self._known:
            raise NotFound(f"there is no download {download_id[:64]}; GET /api/v1/models/downloads lists them")
        return self._known[download_id]

    async def request(self, ref: ModelRef, origin: Origin, *, for_worker: bool = False) -> Download:
        """The download of a model: the one there is, or a new one. Raises ApiError where it cannot be had."""
        async with self.beginning:
            download = await self._same_request(ref)
        if download is None:
            download = await (self._file(ref, origin) if isinstance(ref, FileRef) else self._from_hub(ref, origin))
        if download.record.for_workers and not for_worker:
            # A new one begins as for_workers; whoever asks for the model itself makes it stay.
            download.record.for_workers = False
            await self._saved(download.record)
        return download

    def path_of(self, record: DownloadRecord) -> Path:
        """Where the model is, or will be."""
        if record.model is None:
            return Path(record.file_path or "")
        return files.first(self._cache, record.model)

    async def _same_request(self, ref: ModelRef) -> Download | None:
        """The last one that this reference asks for; `beginning` is held."""
        return await self._first_usable(
            download
            for download in reversed(self._known.values())
            if download.record.model_ref == ref.base
            and (isinstance(ref, FileRef) or ref.filename in {download.record.asked_filename, download.record.filename})
        )

    async def _same_model(self, wanted: Resolved) -> Download | None:
        """The first one of this model; `beginning` is held."""
        return await self._first_usable(download for download in self._known.values() if _is_of(download, wanted))

    async def _first_usable(self, downloads: Iterable[Download]) -> Download | None:
        """Of these the first that goes on, or that is ready and whose model is there."""
        candidates = [
            (download, self.path_of(download.record), download.goes_on)
            for download in downloads
            if download.goes_on or download.ready
        ]
        there = await asyncio.to_thread(lambda: [path.exists() for _, path, _ in candidates])
        for (download, _, went_on), exists in zip(candidates, there, strict=True):
            if download.goes_on or (download.ready and (exists or went_on)):
                return download
        return None

    async def _from_hub(self, ref: HubRef, origin: Origin) -> Download:
        async with self.beginning:
            there = await asyncio.to_thread(here.meant_by, ref, self._cache)
            if (same := await self._same_request(ref)) is not None:
                return same
            if there is not None:
                known = await self._same_model(there) if there.chosen_because is None else None
                return known or await self._ready(ref, there, origin)
        try:
            async with self._questions_at_once:
                found = await self._source.resolve(ref)
        except Failed:
            there = await asyncio.to_thread(here.meant_by, ref, self._cache, even_beside=True)
            if there is not None:
                return await self._ready(ref, there, origin)
            raise
        while True:
            async with self.beginning:
                if (same := await self._same_model(found)) is not None:
                    return same
                if (ending := self._cancelled(found)) is None:
                    return await self._begin(ref, found, origin)
            await self._over(ending)

    def _cancelled(self, model: Resolved) -> Download | None:
        """The download of this model that is being cancelled, and still writes to what a new one would."""
        return next(
            (
                download
                for download in self._known.values()
                if download.cancelling and download.record.is_open and _is_of(download, model)
            ),
            None,
        )

    async def _over(self, download: Download) -> None:
        try:
            async with asyncio.timeout(2 * CANCELLED_S):
                await download.ended.wait()
        except TimeoutError:
            raise Conflict(
                f"the download of {download.record.filename} is being cancelled, and does not end: ask again later",
                id=download.record.download_id,
            ) from None

    async def _begin(self, ref: HubRef, model: Resolved, origin: Origin) -> Download:
        """Start a new one; `beginning` is held, so that no other takes the same room on the disk."""
        others = [
            download.record.model
            for download in self._known.values()
            if download.record.is_open and download.record.model
        ]
        found = await asyncio.to_thread(here.look, self._cache, model, others)
        if found.ready:
            return await self._ready(ref, model, origin)
        found.check_room(model, self._settings)
        record = DownloadRecord(
            download_id=uuid.uuid4().hex,
            model_ref=ref.base,
            asked_filename=ref.filename,
            model=model,
            origin=origin,
            for_workers=True,
            started_at=now(),
        )
        download = self._known[record.download_id] = Download(record)
        download.pace.done = found.present_bytes
        # Before anything is waited for: from here on it may be cancelled.
        download.task = asyncio.create_task(self._run(download))
        await self._saved(record)
        self._prune()
        return download

    async def _file(self, ref: FileRef, origin: Origin) -> Download:
        path = Path(ref.path)
        facts = await reading.facts(path, self._settings.state_dir)
        async with self.beginning:
            return await self._same_request(ref) or await self._add(
                DownloadRecord(
                    download_id=uuid.uuid4().hex,
                    model_ref=ref.base,
                    asked_filename=None,
                    file_path=ref.path,
                    size_bytes=facts.file_bytes,
                    status=DownloadStatus.READY,
                    origin=origin,
                    started_at=now(),
                    ended_at=now(),
                )
            )

    async def _ready(self, ref: HubRef, model: Resolved, origin: Origin) -> Download:
        return await self._add(
            DownloadRecord(
                download_id=uuid.uuid4().hex,
                model_ref=ref.base,
                asked_filename=ref.filename,
                model=model,
                status=DownloadStatus.READY,
                origin=origin,
                started_at=now(),
                ended_at=now(),
            )
        )

    def _save(self, record: DownloadRecord) -> None:
        """Have a record written; without it a download is not taken up by the next start of the agent, no more."""
        download_id, text = record.download_id, record.model_dump_json()
        write = functools.partial(self._records.write, download_id, text)
        self._writes.begin_or_tell(download_id, write, f"the record of download {download_id} cannot be written")

    async def _saved(self, record: DownloadRecord) -> None:
        """Return when the record is written, or the log says why it cannot be."""
        self._save(record)
        await self._writes.settled(record.download_id)

    def _forget(self, record: DownloadRecord) -> None:
        """Have its record removed, and what came of it: nothing else would find that again."""
        download_id = record.download_id
        del self._known[download_id]
        remove = functools.partial(self._remove, download_id, self._left(record))
        self._writes.begin_or_tell(download_id, remove, f"what is left of download {download_id} cannot be removed")

    def _left(self, record: DownloadRecord) -> list[Path]:
        """What came of an ended download, but for what one that goes on writes to."""
        going_on = (download.record.model for download in self._known.values() if download.record.is_open)
        kept = {part for model in going_on if model for part in files.parts(self._cache, model)}
        parts = files.parts(self._cache, record.model) if record.model is not None else []
        return [part for part in parts if part not in kept]

    def _remove(self, download_id: str, parts: list[Path]) -> None:
        for part in parts:
            part.unlink(missing_ok=True)
        self._records.remove(download_id)

    async def _add(self, record: DownloadRecord) -> Download:
        download = self._known[record.download_id] = Download(record)
        await self._saved(record)
        self._prune()
        return download

    async def _run(self, download: Download) -> None:
        record = download.record
        assert record.model is not None  # noqa: S101  only these are ever open
        try:
            async with self._at_once:
                await self._source.fetch(record.model, lambda progress: self._on_progress(download, progress))
            self._end(download, DownloadStatus.READY)
        except Failed as failed:
            self._end(download, DownloadStatus.FAILED, failed.problem)
        except Exception:
            log.exception("download %s", record.download_id)
            problem = Problem(code="internal_error", message="the download failed; the hive's log says why")
            self._end(download, DownloadStatus.FAILED, problem)

    def _on_progress(self, download: Download, progress: Progress) -> None:
        status = DownloadStatus(progress.event)
        if status is DownloadStatus.DOWNLOADING:
            if (more := progress.done - download.pace.done) > 0:
                self._count_bytes(more)
            download.pace.at(progress.done, time.monotonic())
        if status != download.record.status:
            download.record.status = status
            self._save(download.record)

    def _end(self, download: Download, status: DownloadStatus, error: Problem | None = None) -> None:
        download.record.status, download.record.error, download.record.ended_at = status, error, now()
        self._save(download.record)
        log.info("download %s of %s: %s", download.record.download_id, download.record.model_ref, status)
        download.ended.set()

    async def cancel(self, download_id: str) -> Download:
        """End a download and delete what came of it; one that has ended stays as it is. Raises NotFound."""
        download = self.get(download_id)
        if download.record.is_open and download.task is not None:
            if download.cancelling is None:
                download.cancelling = asyncio.create_task(self._cancel(download, download.task))
            await asyncio.shield(download.cancelling)
        return download

    async def _cancel(self, download: Download, task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.wait({task}, timeout=CANCELLED_S)
        if download.record.is_open and download.record.model is not None:
            try:
                await asyncio.to_thread(files.drop_parts, self._cache, download.record.model)
            except OSError as error:
                log.error("what came of download %s cannot be deleted: %s", download.record.download_id, error)  # noqa: TRY400
            self._end(download, DownloadStatus.CANCELLED)
            await self._writes.settled(download.record.download_id)

    async def forget(self, model_ref: str, filename: str) -> None:
        """Forget the ended downloads of a model that is deleted, and what is left of them; `beginning` is held."""
        for download in list(self._known.values()):
            record = download.record
            if record.model_ref == model_ref and record.filename == filename and not record.is_open:
                self._forget(record)
                await self._writes.settled(record.download_id)

    async def events(self, download_id: str) -> AsyncIterator[DownloadView]:
        """The download each time it changed, until it ends. Raises NotFound."""
        download = self.get(download_id)
        last: DownloadView | None = None
        while True:
            view, over = download.view(), download.ended.is_set()
            if view != last:
                yield view
                last = view
            if over:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(download.ended.wait(), EVENT_EVERY_S)

    def _prune(self) -> None:
        # Records of models that are there stay: they hold who asked for them.
        ended = [download for download in self._known.values() if not download.record.is_open and not download.ready]
        for download in ended[:-KEEP_ENDED]:
            self._forget(download.record)


def _is_of(download: Download, wanted: Resolved) -> bool:
    model = download.record.model
    if model is None:
        return False
    return (model.repo, model.commit, model.filename) == (wanted.repo, wanted.commit, wanted.filename)
