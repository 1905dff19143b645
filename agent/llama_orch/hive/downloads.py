"""Downloads: begun once however often they are asked for, cancelled, resumed when the agent starts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from llama_orch.contract.common import Problem
from llama_orch.contract.errors import BadRequest, DoesNotFit, NotFound
from llama_orch.contract.hive import Download, DownloadStatus, Origin
from llama_orch.contract.model_ref import FileRef, HubRef, ModelRef
from llama_orch.web.auth import Token

from . import devices, download_run, hub_question, model_cache, model_files, model_reading, quantisation
from .download_job import Job
from .download_records import KEEP_ENDED, DownloadRecord, DownloadRecords, now
from .hub_model import FetchJob, Question, Resolved
from .problems import Failed, as_answer
from .settings import HiveSettings

log = logging.getLogger(__name__)
EVENT_EVERY_S = 0.5


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
        self._jobs: dict[str, Job] = {}
        self._at_once = asyncio.Semaphore(settings.max_concurrent_downloads)
        self._questions_at_once = asyncio.Semaphore(4)

    def start(self) -> None:
        """Take up what an earlier run of the agent left, in the running loop."""
        for record in self._records.load():
            job = self._jobs[record.download_id] = Job(record)
            if record.is_open:
                record.status = DownloadStatus.QUEUED
                job.pace.done = model_files.present(self._cache, record.model) if record.model else 0
                job.task = asyncio.create_task(self._run(job))
        self._prune()

    async def stop(self) -> None:
        """End the downloads' processes; the records say that they go on at the next start."""
        tasks = [job.task for job in self._jobs.values() if job.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

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
        job = self._same_request(ref) or (
            await self._file(ref, origin) if isinstance(ref, FileRef) else await self._from_hub(ref, origin)
        )
        if job.record.for_workers and not for_worker:
            # A new one begins as for_workers; whoever asks for the model itself makes it stay.
            job.record.for_workers = False
            self._save(job.record)
        return job

    def path_of(self, record: DownloadRecord) -> Path:
        """Where the model is, or will be."""
        if record.model is None:
            return Path(record.file_path or "")
        return model_files.first(self._cache, record.model)

    def _same_request(self, ref: ModelRef) -> Job | None:
        for job in reversed(self._jobs.values()):
            record = job.record
            same_file = isinstance(ref, FileRef) or ref.filename in {record.asked_filename, record.filename}
            if record.model_ref == ref.base and same_file and self._usable(job):
                return job
        return None

    def _same_model(self, wanted: Resolved) -> Job | None:
        for job in self._jobs.values():
            model = job.record.model
            same = model and (model.repo, model.commit, model.filename) == (wanted.repo, wanted.commit, wanted.filename)
            if same and self._usable(job):
                return job
        return None

    def _usable(self, job: Job) -> bool:
        return job.record.is_open or (job.ready and self.path_of(job.record).exists())

    async def _from_hub(self, ref: HubRef, origin: Origin) -> Job:
        here = await asyncio.to_thread(model_cache.models, self._cache)
        if (same := self._same_request(ref)) is not None:
            return same
        if (there := _on_disk(ref, here)) is not None:
            known = self._same_model(there) if there.chosen_because is None else None
            return known or self._ready(ref, there, origin)
        try:
            async with self._questions_at_once:
                found = await _ask_hub(ref, self._settings.hub_endpoint, self._token, self._cache)
        except Failed as failed:
            if (there := _on_disk(ref, here, even_beside=True)) is not None:
                return self._ready(ref, there, origin)
            raise as_answer(failed) from None
        # No await from here on: what is looked up now is still so when the new one is known.
        if (same := self._same_model(found)) is not None:
            return same
        if model_files.ready(self._cache, found):
            return self._ready(ref, found, origin)
        self._check_disk(found)
        record = DownloadRecord(
            download_id=uuid.uuid4().hex,
            model_ref=ref.base,
            asked_filename=ref.filename,
            model=found,
            origin=origin,
            for_workers=True,
            started_at=now(),
        )
        job = self._add(record)
        job.pace.done = model_files.present(self._cache, found)
        job.task = asyncio.create_task(self._run(job))
        return job

    async def _file(self, ref: FileRef, origin: Origin) -> Job:
        path = Path(ref.path)
        try:
            facts = await model_reading.facts(path, self._settings.state_dir)
        except Failed as failed:
            problem = failed.problem
            kind = NotFound if problem.code == "model_not_found" else BadRequest
            raise kind(f"{problem.message}: {problem.what_to_do}", code=problem.code) from None
        return self._add(
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

    def _ready(self, ref: HubRef, model: Resolved, origin: Origin) -> Job:
        return self._add(
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
        try:
            self._records.save(record)
        except OSError:
            # Without its record it is not taken up by the next start of the agent, no more.
            log.exception("the record of download %s cannot be written", record.download_id)

    def _add(self, record: DownloadRecord) -> Job:
        self._save(record)
        job = self._jobs[record.download_id] = Job(record)
        self._prune()
        return job

    def _check_disk(self, model: Resolved) -> None:
        disk = devices.disk(self._cache)
        others = sum(
            job.record.model.size_bytes - model_files.present(self._cache, job.record.model)
            for job in self._jobs.values()
            if job.record.is_open and job.record.model
        )
        available = disk.available_bytes - self._settings.reserved_disk(disk.total_bytes) - others
        needed = model.size_bytes - model_files.present(self._cache, model)
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
                await download_run.until_ready(
                    fetch,
                    lambda event: self._on_event(job, event),
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

    def _on_event(self, job: Job, event: dict[str, Any]) -> None:
        if "done" not in event:
            return
        status = DownloadStatus(event["event"])
        if status is DownloadStatus.DOWNLOADING:
            if (more := event["done"] - job.pace.done) > 0:
                self._count_bytes(more)
            job.pace.at(event["done"], time.monotonic())
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
            job.task.cancel()
            await asyncio.wait({job.task}, timeout=10)
        if job.record.is_open and job.record.model is not None:
            model_files.drop_parts(self._cache, job.record.model)
            self._end(job, DownloadStatus.CANCELLED)
        return job

    def forget(self, model_ref: str, filename: str) -> None:
        """Forget the ended downloads of a model that is deleted, and what is left of them."""
        for job in list(self._jobs.values()):
            record = job.record
            if record.model_ref == model_ref and record.filename == filename and not record.is_open:
                if record.model is not None:
                    model_files.drop_parts(self._cache, record.model)
                del self._jobs[record.download_id]
                self._records.remove(record.download_id)

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
            del self._jobs[job.record.download_id]
            self._records.remove(job.record.download_id)


def _on_disk(ref: HubRef, here: list[model_cache.CachedModel], *, even_beside: bool = False) -> Resolved | None:
    """What of the models that are here a reference means; None where only the hub can tell.

    Where nothing is here but what goes beside models, the hub may have the model itself; `even_beside` takes that.
    """
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
        return model_files.as_resolved(ref, cached[name], because)
    except ValueError:
        # Somebody else put it there, under a name that becomes no path of ours.
        return None


async def _ask_hub(ref: HubRef, endpoint: str, token: str | None, cache: Path) -> Resolved:
    return await hub_question.ask(Question(ref=ref, endpoint=endpoint, token=token), cache)
