"""Durable jobs: DBOS records each before its request is answered and resumes it after a restart.

The workflow is thin: it calls the steps of `work.py`, whose results DBOS keeps. Only a job's id ever goes into
DBOS, which stores inputs and results in full, as JSON (`engine_records.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from dbos import DBOS, SetWorkflowID

from llama_orch.base import backoff
from llama_orch.contract.common import Problem
from llama_orch.contract.errors import Conflict, NotFound, NotReady
from llama_orch.contract.queen import Job, JobKind, NodeStatus
from llama_orch.web import correlation

from ..ansible import failures
from ..fleet.states import NodeEvent, NodeStates
from ..records import JobRecord, RemedyOrder
from ..store.store import Store
from .engine_records import SERIALIZER, EngineRecords
from .work import JobWork

log = logging.getLogger(__name__)

# Recovery looks at this and nothing else: raise it when the order of a workflow's steps changes.
APPLICATION_VERSION = "1"
EXECUTOR_ID = "queen-0"
_ENDED = {"SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"}
_PARK_TIMEOUT_S = 7.0
# A job whose end cannot be written down is tried again this often before it is given up.
FINISH_TRIES = 6
LOOK_S = 5.0
STEP_AGAIN_S = (1.0, 5.0)
T = TypeVar("T")
StepResult = dict[str, Any] | None


class Jobs:
    """Begins, cancels and resumes jobs; at most `max_at_once` run, and one on each node."""

    def __init__(
        self, store: Store, work: JobWork, states: NodeStates, records: EngineRecords, max_at_once: int
    ) -> None:
        self._store = store
        self._work = work
        self._states = states
        self._records = records
        self._slots = asyncio.Semaphore(max_at_once)
        # Of each node that a job works on or waits for: what nobody holds any more is gone.
        self._nodes: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._running: set[asyncio.Task[Any]] = set()
        self._executing: set[str] = set()
        self._threads = ThreadPoolExecutor(8, "queen")

    async def launch(self) -> Problem | None:
        """Start the engine inside the running loop and see to every job that is still open.

        Answers what is wrong where the engine's database was damaged: open jobs then begin anew.
        """
        global _jobs  # noqa: PLW0603  DBOS is one per process, and its functions are module-level
        _jobs = self
        logging.getLogger("dbos").addFilter(_is_news)
        damaged = await asyncio.to_thread(self._records.prepare)
        DBOS(
            config={
                "name": "llama-orch",
                "system_database_url": self._records.url,
                "application_version": APPLICATION_VERSION,
                "executor_id": EXECUTOR_ID,
                "log_level": "WARNING",
                "max_executor_threads": 8,
                "serializer": SERIALIZER,
            }
        )
        DBOS.launch()
        await self._see_to_open_jobs()
        # DBOS makes its pool the loop's default; name look-ups and file reads must not wait behind its work.
        asyncio.get_running_loop().set_default_executor(self._threads)
        return damaged

    async def stop(self) -> None:
        """End what running jobs started here and leave them open for the next start."""
        self._work.stop()
        if self._running:
            await asyncio.wait(set(self._running), timeout=_PARK_TIMEOUT_S)
        await asyncio.get_running_loop().run_in_executor(self._threads, DBOS.destroy)

    async def submit(
        self,
        kind: JobKind,
        node_name: str,
        *,
        force: bool = False,
        password: str | None = None,
        order: RemedyOrder | None = None,
    ) -> JobRecord:
        """Record a job and start it. Raises OpenJobExists, and NotReady while the queen stops."""
        if self._work.stopping:
            raise NotReady("the queen is stopping; ask again when it is back")
        job_id = f"job-{uuid.uuid4().hex[:20]}"
        job = await self._store.jobs.create(
            job_id,
            kind,
            node_name,
            correlation.current(),
            force=force,
            had_password=password is not None,
            order=order,
        )
        self._work.running(job_id).password = password
        await self._states.belongs_to(node_name, job_id)
        await self._start(job_id)
        return job

    async def cancel(self, job_id: str) -> Job:
        """Ask an open job to end. Raises NotFound, and Conflict where it has ended."""
        job = await self._store.jobs.get(job_id)
        if job is None:
            raise NotFound(f"there is no job {job_id}")
        if not await self._store.jobs.cancel(job_id):
            raise Conflict(f"job {job_id} has ended: it is {job.status}", code="job_ended", status=job.status)
        self._work.running(job_id).interrupt.set()
        now = await self._store.jobs.get(job_id) or job
        if not now.is_open:
            self._work.forget(job_id)
        return now.wire

    async def execute(self, job_id: str) -> None:
        """One job from begin to end: the body of the workflow."""
        self._executing.add(job_id)
        try:
            await self._execute(job_id)
        finally:
            self._executing.discard(job_id)

    async def _execute(self, job_id: str) -> None:
        job = await self._store.jobs.get(job_id)
        if job is None or not job.is_open:
            return
        task = asyncio.current_task()
        if task is not None:
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        async with self._slot(job):
            try:
                problem = await self._steps(await self._store.jobs.get(job_id) or job)
            except Exception:
                log.exception("job %s ended by an unexpected error", job_id)
                problem = failures.INTERNAL
            await self._finish(job, problem)
        await self._forget(await self._store.trim())

    async def _finish(self, job: JobRecord, problem: Problem | None) -> None:
        """Finish a job, again and again where that fails: a disk that is full has room some day."""
        for attempt in itertools.count(1):
            try:
                if attempt <= FINISH_TRIES:
                    await self._work.finish(job, problem)
                else:
                    await self._work.give_up(job)
            except Exception:
                log.exception("job %s cannot be finished (attempt %d)", job.job_id, attempt)
            else:
                return
            await self._work.pause(backoff.delay(attempt))

    async def step(self, job_id: str, work: Callable[[JobRecord], Awaitable[Problem | None]]) -> StepResult:
        """One step of a job, as something the engine can store."""

        async def once() -> Problem | None:
            job = await self._store.jobs.get(job_id)
            assert job is not None  # noqa: S101  execute() has looked
            return await work(job)

        problem = await self._persistently(job_id, once)
        return None if problem is None else problem.model_dump()

    async def _persistently(self, job_id: str, work: Callable[[], Awaitable[T]]) -> T:
        """Do it again where it fails unexpectedly: a disk or memory that is full may have room in a moment.

        Every step ends what an earlier attempt at it left.
        """
        for pause in STEP_AGAIN_S:
            try:
                return await work()
            except Exception:
                log.exception("a step of job %s failed, and is done again in %g s", job_id, pause)
            await self._work.running(job_id).pause(pause)
        return await work()

    @property
    def work(self) -> JobWork:
        """The steps."""
        return self._work

    async def _steps(self, job: JobRecord) -> Problem | None:
        await self._persistently(job.job_id, lambda: self._work.begin(job))
        if self._work.running(job.job_id).interrupt.is_set() and not self._work.stopping:
            return failures.CANCELLED
        for step in (_preflight, _play, _verify):
            result = await step(job.job_id)
            if result is not None:
                return Problem.model_validate(result)
        return None

    @contextlib.asynccontextmanager
    async def _slot(self, job: JobRecord) -> AsyncIterator[None]:
        """Wait for this node and for a free slot; a job that is cancelled waits no longer."""
        node = self._nodes.get(job.node_name)
        if node is None:
            node = self._nodes[job.node_name] = asyncio.Lock()
        async with node:
            waiting = asyncio.create_task(self._slots.acquire())
            interrupted = asyncio.create_task(self._work.running(job.job_id).interrupt.wait())
            try:
                await asyncio.wait({waiting, interrupted}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                interrupted.cancel()
                if not waiting.done():
                    waiting.cancel()
            if self._work.stopping:
                raise asyncio.CancelledError("the queen stops")
            try:
                yield
            finally:
                if waiting.done() and not waiting.cancelled():
                    self._slots.release()

    async def _start(self, job_id: str) -> None:
        with SetWorkflowID(job_id):
            await DBOS.start_workflow_async(_job, job_id)

    async def _see_to_open_jobs(self) -> None:
        """A job may have been recorded by us and not by DBOS, ended there and not here, or be another version's.

        One whose records were deleted, as they were no JSON, is recorded by us alone and begins anew.
        """
        open_jobs = await self._store.jobs.open()
        ids = [job.job_id for job in open_jobs]
        known = await DBOS.list_workflows_async(workflow_ids=ids, load_input=False, load_output=False) if ids else []
        workflows = {workflow.workflow_id: workflow for workflow in known}
        for job in open_jobs:
            workflow = workflows.get(job.job_id)
            if workflow is not None and workflow.app_version != APPLICATION_VERSION:
                await DBOS.cancel_workflow_async(job.job_id)
                await self._close(job, failures.INTERRUPTED_BY_UPGRADE)
            elif workflow is None or workflow.status in _ENDED:
                await self._take_up(job, known=workflow is not None)
        busy = {job.node_name for job in open_jobs}
        for record in self._states.known():
            if record.node_name not in busy and record.status in _ONLY_IN_A_JOB:
                await self._states.take(record.node_name, _ONLY_IN_A_JOB[record.status], problem=failures.INTERRUPTED)

    async def look_for_lost(self) -> None:
        """Take up every job that is open and that nothing works on; runs until cancelled.

        There should be none. What would be one: a job that was recorded by us and not by the engine, whose disk was
        full, or one whose workflow the engine gave up.
        """
        lost_before: set[str] = set()
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                idle = {job.job_id: job for job in await self._store.jobs.open()}
                lost = idle.keys() - self._executing
                for job_id in lost & lost_before:
                    log.warning("job %s is open and nothing works on it: taken up", job_id)
                    known = await DBOS.list_workflows_async(workflow_ids=[job_id], load_input=False, load_output=False)
                    if known and known[0].status not in _ENDED:
                        await DBOS.cancel_workflow_async(job_id)
                    await self._take_up(idle[job_id], known=bool(known))
                lost_before = lost
            except Exception:
                log.exception("open jobs could not be looked at")

    async def _take_up(self, job: JobRecord, *, known: bool) -> None:
        """Begin a job that the engine does not know; close one that it has ended."""
        if known:
            await self._close(job, failures.INTERRUPTED)
        else:
            await self._start(job.job_id)

    async def _close(self, job: JobRecord, problem: Problem) -> None:
        """Where it cannot be closed it stays open, and is looked at again."""
        try:
            await self._work.begin(job)
            await self._work.finish(job, problem)
        except Exception:
            log.exception("job %s cannot be closed", job.job_id)

    async def _forget(self, job_ids: list[str]) -> None:
        if job_ids:
            await DBOS.delete_workflows_async(job_ids)


_ONLY_IN_A_JOB = {
    NodeStatus.PROVISIONING: NodeEvent.PROVISION_FAILED,
    NodeStatus.REMOVING: NodeEvent.REMOVE_FAILED,
}
_jobs: Jobs | None = None


def _engine() -> Jobs:
    if _jobs is None:
        raise RuntimeError("the job engine was not launched")
    return _jobs


def _is_news(record: logging.LogRecord) -> bool:
    """Leaves out what DBOS says whenever a queen stops or resumes."""
    text = record.getMessage()
    return "Asyncio task cancelled" not in text and "Workflow already exists in queue" not in text


@DBOS.workflow(name="job", max_recovery_attempts=1000)
async def _job(job_id: str) -> None:
    await _engine().execute(job_id)


@DBOS.step(name="preflight")
async def _preflight(job_id: str) -> StepResult:
    return await _engine().step(job_id, _engine().work.preflight)


@DBOS.step(name="play")
async def _play(job_id: str) -> StepResult:
    return await _engine().step(job_id, _engine().work.play)


@DBOS.step(name="verify")
async def _verify(job_id: str) -> StepResult:
    return await _engine().step(job_id, _engine().work.verify)
