"""Downloads: begun once however often they are asked for, cancelled, resumed when the agent starts."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from llama_orch.base.tokens import Token
from llama_orch.contract.common import Problem
from llama_orch.contract.devices import MemoryInfo
from llama_orch.contract.errors import BadRequest, Conflict, DoesNotFit, NotFound, NotReady
from llama_orch.contract.hive import Download, DownloadStatus, Origin
from llama_orch.contract.model_ref import FileRef, HubRef, ModelRef

from ...devices import machine
from ...ordered_writes import OrderedWrites
from ...problems import Failed, as_answer
from ...settings import HiveSettings
from .. import cache as model_cache
from .. import files, quantisation, reading
from ..hub import question
from ..hub.description import FetchJob, Question, Resolved
from . import run
from .job import Job
from .records import KEEP_ENDED, DownloadRecord, DownloadRecords, now
from .run import Progress

log = logging.getLogger(__name__)
EVENT_EVERY_S = 0.5
# How long a download's process gets to end.
CANCELLED_S = 10.0


class Downloads:
    """All downloads of the hive."""

    def __init__(
        self, settings: HiveSettings, hub_token: Token | None, count_bytes: Callable[[int], None] = lambda _: None
    ) -> None:
        self._settings = settings
        self._cache = settings.models_dir
        self._token = hub_token.reveal() if hub_token else None
        self._count_bytes = count_bytes
        self._records = DownloadRecords(settings.state_dir / "downloads")
        self._writes = OrderedWrites()
        self._jobs: dict[str, Job] = {}
        # Held while it is looked up which downloads there are and a new one begins, and while a model is deleted.
        self.beginning = asyncio.Lock()
        self._at_once = asyncio.Semaphore(settings.max_concurrent_downloads)
        self._questions_at_once = asyncio.Semaphore(4)

    def start(self) -> None:
        """Take up what an earlier run of the agent left, in the running loop."""
        for record in self._records.load():
            job = self._jobs[record.download_id] = Job(record)
            if record.is_open:
                record.status = DownloadStatus.QUEUED
                job.pace.done = files.present(self._cache, record.model) if record.model else 0
                job.task = asyncio.create_task(self._run(job))
        if self._records.damaged:
            self._drop_unknown_parts()
        self._prune()

    def _drop_unknown_parts(self) -> None:
        """Delete what came of downloads whose records are damaged: nothing else would ever find it."""
        models = (job.record.model for job in self._jobs.values())
        known = {part for model in models if model for part in files.parts(self._cache, model)}
        for part in model_cache.drop_parts(self._cache, known):
            log.error("%s is what came of a download whose record is damaged: deleted", part.relative_to(self._cache))

    async def stop(self) -> None:
        """End the downloads' processes; the records say that they go on at the next start."""
        tasks = [job.task for job in self._jobs.values() if job.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # What was being cancelled is so before the next start takes it up again.
        if cancelling := [job.cancelling for job in self._jobs.values() if job.cancelling is not None]:
            await asyncio.wait(cancelling, timeout=CANCELLED_S)
        await self._writes.settled(within_s=5)

    def all(self) -> list[Job]:
        """Every download that is known, oldest first."""
        return list(self._jobs.values())

    def get(self, download_id: str) -> Job:
        """One download. Raises NotFound."""
        if download_id not in self._jobs:
            raise NotFound(f"there is no download {download_id[:64]}; GET /api/v1/models/downloads lists them")
        return self._jobs[download_id]

    async def request(self, ref: ModelRef, origin: Origin, *, for_worker: bool = False) -> Job:
        """The download of a model: the one there is, or a new one. Raises ApiError where it cannot be had."""
        async with self.beginning:
            job = await self._same_request(ref)
        if job is None:
            job = await (self._file(ref, origin) if isinstance(ref, FileRef) else self._from_hub(ref, origin))
        if job.record.for_workers and not for_worker:
            # A new one begins as for_workers; whoever asks for the model itself makes it stay.
            job.record.for_workers = False
            await self._saved(job.record)
        return job

    def path_of(self, record: DownloadRecord) -> Path:
        """Where the model is, or will be."""
        if record.model is None:
            return Path(record.file_path or "")
        return files.first(self._cache, record.model)

    async def _same_request(self, ref: ModelRef) -> Job | None:
        """The last one that this reference asks for; `beginning` is held."""
        return await self._first_usable(
            job
            for job in reversed(self._jobs.values())
            if job.record.model_ref == ref.base
            and (isinstance(ref, FileRef) or ref.filename in {job.record.asked_filename, job.record.filename})
        )

    async def _same_model(self, wanted: Resolved) -> Job | None:
        """The first one of this model; `beginning` is held."""
        return await self._first_usable(job for job in self._jobs.values() if _is_of(job, wanted))

    async def _first_usable(self, jobs: Iterable[Job]) -> Job | None:
        """Of these the first that goes on, or that is ready and whose model is there."""
        candidates = [(job, self.path_of(job.record), job.goes_on) for job in jobs if job.goes_on or job.ready]
        there = await asyncio.to_thread(lambda: [path.exists() for _, path, _ in candidates])
        for (job, _, went_on), exists in zip(candidates, there, strict=True):
            if job.goes_on or (job.ready and (exists or went_on)):
                return job
        return None

    async def _from_hub(self, ref: HubRef, origin: Origin) -> Job:
        async with self.beginning:
            here = await asyncio.to_thread(_on_disk, ref, self._cache)
            if (same := await self._same_request(ref)) is not None:
                return same
            if here is not None:
                known = await self._same_model(here) if here.chosen_because is None else None
                return known or await self._ready(ref, here, origin)
        try:
            async with self._questions_at_once:
                found = await _ask_hub(ref, self._settings.hub_endpoint, self._token, self._cache)
        except Failed as failed:
            there = await asyncio.to_thread(_on_disk, ref, self._cache, even_beside=True)
            if there is not None:
                return await self._ready(ref, there, origin)
            raise as_answer(failed) from None
        while True:
            async with self.beginning:
                if (same := await self._same_model(found)) is not None:
                    return same
                if (dying := self._cancelled(found)) is None:
                    return await self._begin(ref, found, origin)
            await self._over(dying)

    def _cancelled(self, model: Resolved) -> Job | None:
        """The download of this model that is being cancelled, and still writes to what a new one would."""
        return next(
            (job for job in self._jobs.values() if job.cancelling and job.record.is_open and _is_of(job, model)), None
        )

    async def _over(self, job: Job) -> None:
        try:
            async with asyncio.timeout(2 * CANCELLED_S):
                await job.ended.wait()
        except TimeoutError:
            raise Conflict(
                f"the download of {job.record.filename} is being cancelled, and does not end: ask again in a while",
                id=job.record.download_id,
            ) from None

    async def _begin(self, ref: HubRef, model: Resolved, origin: Origin) -> Job:
        """Start a new one; `beginning` is held, so that no other takes the same room on the disk."""
        others = [job.record.model for job in self._jobs.values() if job.record.is_open and job.record.model]
        found = await asyncio.to_thread(_look, self._cache, model, others)
        if found.ready:
            return await self._ready(ref, model, origin)
        self._check_disk(model, found)
        record = DownloadRecord(
            download_id=uuid.uuid4().hex,
            model_ref=ref.base,
            asked_filename=ref.filename,
            model=model,
            origin=origin,
            for_workers=True,
            started_at=now(),
        )
        job = self._jobs[record.download_id] = Job(record)
        job.pace.done = found.present_bytes
        # Before anything is waited for: from here on it may be cancelled.
        job.task = asyncio.create_task(self._run(job))
        await self._saved(record)
        self._prune()
        return job

    async def _file(self, ref: FileRef, origin: Origin) -> Job:
        path = Path(ref.path)
        try:
            facts = await reading.facts(path, self._settings.state_dir)
        except Failed as failed:
            problem = failed.problem
            kind = NotReady if failed.retry else NotFound if problem.code == "model_not_found" else BadRequest
            raise kind(f"{problem.message}: {problem.what_to_do}", code=problem.code) from None
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

    async def _ready(self, ref: HubRef, model: Resolved, origin: Origin) -> Job:
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
        del self._jobs[download_id]
        remove = functools.partial(self._remove, download_id, self._left(record))
        self._writes.begin_or_tell(download_id, remove, f"what is left of download {download_id} cannot be removed")

    def _left(self, record: DownloadRecord) -> list[Path]:
        """What came of an ended download, but for what one that goes on writes to."""
        going_on = (job.record.model for job in self._jobs.values() if job.record.is_open)
        kept = {part for model in going_on if model for part in files.parts(self._cache, model)}
        parts = files.parts(self._cache, record.model) if record.model is not None else []
        return [part for part in parts if part not in kept]

    def _remove(self, download_id: str, parts: list[Path]) -> None:
        for part in parts:
            part.unlink(missing_ok=True)
        self._records.remove(download_id)

    async def _add(self, record: DownloadRecord) -> Job:
        job = self._jobs[record.download_id] = Job(record)
        await self._saved(record)
        self._prune()
        return job

    def _check_disk(self, model: Resolved, found: _OnDisk) -> None:
        available = found.disk.available_bytes - self._settings.reserved_disk(found.disk.total_bytes)
        available -= found.promised_bytes
        needed = model.size_bytes - found.present_bytes
        if needed > available:
            raise DoesNotFit(
                f"{model.filename} needs {needed} bytes more on the disk and {max(0, available)} may be used: "
                "delete models, or enlarge the disk of models_dir",
                code="disk_full",
                needed_bytes=needed,
                available_bytes=max(0, available),
            )

    async def _run(self, job: Job) -> None:
        record = job.record
        assert record.model is not None  # noqa: S101  only these are ever open
        fetch = FetchJob(endpoint=self._settings.hub_endpoint, token=self._token, cache=self._cache, model=record.model)
        try:
            async with self._at_once:
                await run.until_ready(
                    fetch,
                    lambda progress: self._on_progress(job, progress),
                    attempts=self._settings.download_attempts,
                    stall_s=self._settings.download_stall_s,
                )
            self._end(job, DownloadStatus.READY)
        except Failed as failed:
            self._end(job, DownloadStatus.FAILED, failed.problem)
        except Exception:
            log.exception("download %s", record.download_id)
            problem = Problem(code="internal_error", message="the download failed; the hive's log says why")
            self._end(job, DownloadStatus.FAILED, problem)

    def _on_progress(self, job: Job, progress: Progress) -> None:
        status = DownloadStatus(progress.event)
        if status is DownloadStatus.DOWNLOADING:
            if (more := progress.done - job.pace.done) > 0:
                self._count_bytes(more)
            job.pace.at(progress.done, time.monotonic())
        if status != job.record.status:
            job.record.status = status
            self._save(job.record)

    def _end(self, job: Job, status: DownloadStatus, error: Problem | None = None) -> None:
        job.record.status, job.record.error, job.record.ended_at = status, error, now()
        self._save(job.record)
        log.info("download %s of %s: %s", job.record.download_id, job.record.model_ref, status)
        job.ended.set()

    async def cancel(self, download_id: str) -> Job:
        """End a download and delete what came of it; one that has ended stays as it is. Raises NotFound."""
        job = self.get(download_id)
        if job.record.is_open and job.task is not None:
            if job.cancelling is None:
                job.cancelling = asyncio.create_task(self._cancel(job, job.task))
            await asyncio.shield(job.cancelling)
        return job

    async def _cancel(self, job: Job, task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.wait({task}, timeout=CANCELLED_S)
        if job.record.is_open and job.record.model is not None:
            try:
                await asyncio.to_thread(files.drop_parts, self._cache, job.record.model)
            except OSError as error:
                log.error("what came of download %s cannot be deleted: %s", job.record.download_id, error)  # noqa: TRY400
            self._end(job, DownloadStatus.CANCELLED)
            await self._writes.settled(job.record.download_id)

    async def forget(self, model_ref: str, filename: str) -> None:
        """Forget the ended downloads of a model that is deleted, and what is left of them; `beginning` is held."""
        for job in list(self._jobs.values()):
            record = job.record
            if record.model_ref == model_ref and record.filename == filename and not record.is_open:
                self._forget(record)
                await self._writes.settled(record.download_id)

    async def events(self, download_id: str) -> AsyncIterator[Download]:
        """The download each time it changed, until it ends. Raises NotFound."""
        job = self.get(download_id)
        last: Download | None = None
        while True:
            view, over = job.view(), job.ended.is_set()
            if view != last:
                yield view
                last = view
            if over:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(job.ended.wait(), EVENT_EVERY_S)

    def _prune(self) -> None:
        # Records of models that are there stay: they hold who asked for them.
        ended = [job for job in self._jobs.values() if not job.record.is_open and not job.ready]
        for job in ended[:-KEEP_ENDED]:
            self._forget(job.record)


@dataclass(frozen=True)
class _OnDisk:
    """What there is of a model, and room for more; `promised_bytes` are those that others still want."""

    ready: bool
    present_bytes: int
    promised_bytes: int
    disk: MemoryInfo


def _look(cache: Path, model: Resolved, others: list[Resolved]) -> _OnDisk:
    promised = sum(other.size_bytes - files.present(cache, other) for other in others)
    return _OnDisk(
        ready=files.ready(cache, model),
        present_bytes=files.present(cache, model),
        promised_bytes=promised,
        disk=machine.disk(cache),
    )


def _is_of(job: Job, wanted: Resolved) -> bool:
    model = job.record.model
    if model is None:
        return False
    return (model.repo, model.commit, model.filename) == (wanted.repo, wanted.commit, wanted.filename)


def _on_disk(ref: HubRef, cache: Path, *, even_beside: bool = False) -> Resolved | None:
    """What of the models that are here a reference means; None where only the hub can tell.

    Where nothing is here but what goes beside models, the hub may have the model itself; `even_beside` takes that.
    """
    here = model_cache.models(cache)
    cached = {model.filename: model for model in here if model.answers(ref.repo, ref.revision)}
    name, because = ref.filename, None
    if name is None:
        choice = quantisation.choose(cached)
        if choice is None or (quantisation.goes_beside(choice[0]) and not even_beside):
            return None
        name, why = choice
        several = len(quantisation.models_of(cached)) > 1
        because = f"of those that are here, {why}; name another with ::file=" if several else None
    if name not in cached:
        return None
    try:
        return files.as_resolved(ref, cached[name], because)
    except ValueError:
        # Somebody else put it there, under a name that becomes no path of ours.
        return None


async def _ask_hub(ref: HubRef, endpoint: str, token: str | None, cache: Path) -> Resolved:
    return await question.ask(Question(ref=ref, endpoint=endpoint, token=token), cache)
