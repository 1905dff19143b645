"""A job's story: written in small batches, read by any number of clients from its first line and then live."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from llama_orch.contract.errors import NotFound, NotReady
from llama_orch.contract.queen import JobEvent, JobStatus

from .progress import Progress
from .run_lines import PlayLine, TaskLine
from .store import Store

log = logging.getLogger(__name__)

_BATCH_S = 0.1
# A playbook in a loop must not fill the disk: beyond this only what failed and the end are kept.
MAX_EVENTS = 20_000


class Story:
    """Writes the events of one job. Nothing here blocks; `flush` waits until all is on the disk."""

    def __init__(self, job_id: str, store: Store, told: asyncio.Condition, seq: int, progress: Progress) -> None:
        self._job_id = job_id
        self._store = store
        self._told = told
        self._seq = seq
        self._pending: list[JobEvent] = []
        self._writing = asyncio.Lock()
        self._timer: asyncio.Task[None] | None = None
        self._play: str | None = None
        self.progress = progress

    def phase(self, message: str) -> None:
        """A step of the queen's own begins."""
        self._add(kind="phase", message=message)

    def line(self, line: PlayLine | TaskLine) -> None:
        """An event of a run, as its child process sent it."""
        if isinstance(line, PlayLine):
            self._play = line.play
            self._add(kind="play", play=self._play)
            return
        if line.outcome == "started":
            self.progress.task_began()
        self._add(
            kind="task",
            play=self._play,
            task=line.task,
            host=line.host,
            outcome=line.outcome,
            duration_s=line.duration_s,
            message=line.message,
        )

    async def end(self, status: JobStatus, message: str | None) -> None:
        """The job's last line."""
        if status is JobStatus.SUCCEEDED:
            self.progress.succeeded()
        self._add(kind="end", status=status, message=message)
        await self.flush()

    async def flush(self) -> None:
        """Write what is pending and wake the readers."""
        async with self._writing:
            events, self._pending = self._pending, []
            if events:
                try:
                    await self._store.add_events(self._job_id, events)
                except Exception:
                    # The next time has them too, but not without end.
                    self._pending = (events + self._pending)[-MAX_EVENTS:]
                    raise
        async with self._told:
            self._told.notify_all()

    def _add(self, **fields: Any) -> None:
        self._seq += 1
        if self._seq > MAX_EVENTS and fields["kind"] == "task" and fields["outcome"] not in {"failed", "unreachable"}:
            return
        event = JobEvent(seq=self._seq, at=datetime.now(UTC), percentage=self.progress.percentage, **fields)
        self._pending.append(event)
        if self._timer is None or self._timer.done():
            self._timer = asyncio.create_task(self._flush_soon(), name=f"events of {self._job_id}")

    async def _flush_soon(self) -> None:
        await asyncio.sleep(_BATCH_S)
        try:
            await self.flush()
        except Exception:
            log.exception("events of %s could not be written", self._job_id)


class JobEvents:
    """The stories of all jobs."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._told: defaultdict[str, asyncio.Condition] = defaultdict(asyncio.Condition)
        self._closed = False

    async def story(self, job_id: str) -> Story:
        """Begin the job's story, or go on with it after a restart."""
        last = await self._store.last_event(job_id)
        progress = Progress(last.percentage if last else 0.0)
        return Story(job_id, self._store, self._told[job_id], last.seq if last else 0, progress)

    def stream(self, job_id: str) -> AsyncIterator[JobEvent]:
        """Every event of the job until it ends. Raises NotFound, and NotReady when the queen stops meanwhile."""
        return self._stream(job_id)

    async def close(self) -> None:
        """End every stream: the queen stops."""
        self._closed = True
        for told in list(self._told.values()):
            async with told:
                told.notify_all()

    def forget(self, job_id: str) -> None:
        """Nobody will write to this story any more."""
        self._told.pop(job_id, None)

    async def _stream(self, job_id: str) -> AsyncIterator[JobEvent]:
        seq, looked_after_end = 0, False
        while True:
            job = await self._store.job(job_id)
            if job is None:
                raise NotFound(f"there is no job {job_id}")
            events = await self._store.events(job_id, seq)
            for event in events:
                seq = event.seq
                yield event
                if event.kind == "end":
                    return
            if events:
                continue
            if not job.is_open and looked_after_end:
                yield _missing_end(job.wire.status, job.wire.percentage, seq + 1)
                return
            if self._closed:
                raise NotReady("the queen is stopping; the job goes on when it is back")
            looked_after_end = not job.is_open
            told = self._told[job_id] if job.is_open else asyncio.Condition()
            async with told:
                # The time-out heals a wake-up that came between the look and the wait.
                try:
                    await asyncio.wait_for(told.wait(), 1.0)
                except TimeoutError:
                    continue


def _missing_end(status: JobStatus, percentage: float, seq: int) -> JobEvent:
    """The last line of a job whose queen was killed before it could write one."""
    return JobEvent(seq=seq, at=datetime.now(UTC), kind="end", percentage=percentage, status=status)
