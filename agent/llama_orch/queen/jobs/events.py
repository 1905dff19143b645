"""A job's story: written in small batches, read by any number of clients from its first line and then live."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from weakref import WeakValueDictionary

from pydantic import BaseModel

from llama_orch.contract.errors import NotFound, NotReady
from llama_orch.contract.queen import JobEvent, JobStatus

from ..ansible.lines import PlayLine, TaskLine
from ..store.store import Store
from .progress import Progress

log = logging.getLogger(__name__)

_BATCH_S = 0.1
# Where the store fails it is tried again after pauses that grow to this.
_LONGEST_PAUSE_S = 30.0
# A playbook in a loop must not fill the disk: beyond this only what failed is kept, beyond so many more only the end.
MAX_EVENTS = 20_000
MAX_FAILURES_BEYOND = 1000
# So many are read, and sent, between two turns of everything else.
_AT_ONCE = 100


class Story:
    """Writes the events of one job. Nothing here blocks; `flush` waits until all is on the disk.

    What the store does not take is kept and tried again until it does, or the story is closed.
    """

    def __init__(self, job_id: str, store: Store, told: asyncio.Condition, seq: int, progress: Progress) -> None:
        self._job_id = job_id
        self._store = store
        self._told = told
        self._seq = seq
        self._pending: list[JobEvent] = []
        self._writing = asyncio.Lock()
        self._timer: asyncio.Task[None] | None = None
        self._play: str | None = None
        self._limits_told: set[int] = set()
        self._ended = False
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
        """The job's last line, however often this is repeated. Raises what the store raises."""
        if status is JobStatus.SUCCEEDED:
            self.progress.succeeded()
        if not self._ended:
            self._ended = True
            self._add(kind="end", status=status, message=message)
        await self.flush()

    async def close(self) -> None:
        """Write what is pending, once more; nothing is written later."""
        if self._timer is not None:
            self._timer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._timer
        try:
            await self.flush()
        except Exception:
            log.exception("%d events of %s are lost: they could not be written", len(self._pending), self._job_id)

    async def flush(self) -> None:
        """Write what is pending and wake the readers. Raises what the store raises."""
        async with self._writing:
            events, self._pending = self._pending, []
            if events:
                try:
                    await self._store.events.add(self._job_id, events)
                except BaseException:
                    # The next time has them too, but not without end. Some may be there: the store takes none twice.
                    self._pending = (events + self._pending)[-MAX_EVENTS:]
                    raise
        async with self._told:
            self._told.notify_all()

    def _add(self, **fields: Any) -> None:
        if self._is_one_too_many(**fields):
            return
        self._seq += 1
        event = JobEvent(seq=self._seq, at=datetime.now(UTC), percentage=self.progress.percentage, **fields)
        self._pending.append(event)
        if self._timer is None or self._timer.done():
            self._timer = asyncio.create_task(self._flush_soon(), name=f"events of {self._job_id}")

    def _is_one_too_many(self, *, kind: str, outcome: str | None = None, **_: Any) -> bool:
        if kind not in {"play", "task"}:
            return False
        failed = outcome in {"failed", "unreachable"}
        most = MAX_EVENTS + (MAX_FAILURES_BEYOND if failed else 0)
        if self._seq < most:
            return False
        if most not in self._limits_told:
            self._limits_told.add(most)
            told = "nothing but the end is told" if failed else "only what fails is told"
            self.phase(f"this job has more than {most} events: from here on {told}")
        return True

    async def _flush_soon(self) -> None:
        pause = _BATCH_S
        while self._pending:
            await asyncio.sleep(pause)
            try:
                await self.flush()
            except Exception as error:
                pause = min(_LONGEST_PAUSE_S, max(1.0, pause * 2))
                log.error("events of %s cannot be written, again in %g s: %r", self._job_id, pause, error)  # noqa: TRY400
            else:
                pause = _BATCH_S


class JobEvents:
    """The stories of all jobs."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # Of each job that somebody writes or reads: what nobody holds any more is gone.
        self._told: WeakValueDictionary[str, asyncio.Condition] = WeakValueDictionary()
        self._stories: dict[str, Story] = {}
        self._closed = False

    async def story(self, job_id: str) -> Story:
        """Begin the job's story, or go on with it after a restart."""
        last = await self._store.events.last(job_id)
        progress = Progress(last.percentage if last else 0.0)
        story = Story(job_id, self._store, self._told_of(job_id), last.seq if last else 0, progress)
        self._stories[job_id] = story
        return story

    def stream(self, job_id: str) -> AsyncIterator[list[BaseModel | str]]:
        """Every event of the job until it ends, those that come together in one list.

        Raises NotFound, and NotReady when the queen stops meanwhile.
        """
        return self._stream(job_id)

    async def close(self) -> None:
        """End every stream: the queen stops. What is written from now on, `finish` writes."""
        self._closed = True
        for told in list(self._told.values()):
            async with told:
                told.notify_all()

    async def finish(self) -> None:
        """Write what is pending of every story."""
        for story in list(self._stories.values()):
            await story.close()

    def forget(self, job_id: str) -> None:
        """Nobody will write to this story any more."""
        self._stories.pop(job_id, None)

    def _told_of(self, job_id: str) -> asyncio.Condition:
        told = self._told.get(job_id)
        if told is None:
            told = self._told[job_id] = asyncio.Condition()
        return told

    async def _stream(self, job_id: str) -> AsyncIterator[list[BaseModel | str]]:
        seq, looked_after_end = 0, False
        while True:
            job = await self._store.jobs.get(job_id)
            if job is None:
                raise NotFound(f"there is no job {job_id}")
            events = await self._store.events.after(job_id, seq, _AT_ONCE)
            if events:
                seq = events[-1].seq
                yield [*events]
                if any(event.kind == "end" for event in events):
                    return
                continue
            if not job.is_open and looked_after_end:
                yield [_missing_end(job.status, job.percentage, seq + 1)]
                return
            if self._closed:
                raise NotReady("the queen is stopping; the job goes on when it is back")
            looked_after_end = not job.is_open
            told = self._told_of(job_id)
            async with told:
                # The time-out heals a wake-up that came between the look and the wait.
                try:
                    await asyncio.wait_for(told.wait(), 1.0)
                except TimeoutError:
                    continue


def _missing_end(status: JobStatus, percentage: float, seq: int) -> JobEvent:
    """The last line of a job whose queen was killed before it could write one."""
    return JobEvent(seq=seq, at=datetime.now(UTC), kind="end", percentage=percentage, status=status)
