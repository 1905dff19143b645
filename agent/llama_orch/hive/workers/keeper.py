"""One worker's life: model, process, watch, restart, end. Each keeper is one task; its record survives it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from llama_orch.base import backoff, processes
from llama_orch.contract.common import Problem
from llama_orch.contract.errors import ApiError
from llama_orch.contract.hive import Worker, WorkerStatus
from llama_orch.contract.process import EXIT_KNOWN_FAILURE, WorkerEnded

from ..looking import look
from ..models.downloads.download import Download
from ..problems import Failed, may_pass, problem_of
from . import ending, launch, preparation
from .process_table import Process
from .pulse import Pulse, is_doubted
from .records import WorkerRecord
from .shared import Shared
from .state import WorkerState

log = logging.getLogger(__name__)
T = TypeVar("T")
LOOK_S = 0.25
ASK_S = 1.0
PORT_RACES = 10
READY_SECONDS_PER_BYTE = 20 / 1e9


class WorkerKeeper:
    """Keeps one worker running until it is stopped or has failed."""

    def __init__(self, record: WorkerRecord, shared: Shared) -> None:
        self.record = record
        self.state = WorkerState()
        self.process: Process | None = None
        self.slots_busy = 0
        self.tokens_per_second = 0.0
        # None until it has said so.
        self.confined: bool | None = None
        # How far it has loaded its model.
        self.percentage: float | None = None
        self._shared = shared
        self._processes = shared.processes
        self._folder = shared.records.folder(record.id)
        self._task: asyncio.Task[None] | None = None
        self._forgetting = asyncio.Lock()
        # Not while its record is being removed: what is written then would bring it back.
        self._writable = True
        self._port_races = 0
        self._asked_at = 0.0
        self._pulse = Pulse(0.0)

    def start(self) -> None:
        """Take the worker up from wherever its record says it is."""
        if self.record.failed:
            self.state.fail()
        else:
            self._task = asyncio.create_task(self._live(), name=f"worker {self.record.id}")

    async def leave(self) -> None:
        """Stop watching; the worker goes on without us."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=5)

    async def stop(self) -> None:
        """Drain and end the worker, or go on with that where an earlier run of the agent began it.

        Raises ending.WillNotEnd.
        """
        record, settings = self.record, self._shared.settings
        if not record.stopping:
            record.stopping = True
            # Of its present process, which may have answers under way whether we have asked it yet or not.
            was_ready = record.ready_at is not None
            record.drain_until_s = processes.uptime() + settings.drain_timeout_s if was_ready else None
        await self.saved()
        await self.leave()
        # A start that its end came in between of is over then, and its process is found.
        await self._shared.writes.settled(record.id)
        self.state.drain()
        if self.process is None:
            self.process = await self._processes.recorded(record.id)
        await self._end_processes(self._drain_left(), settings.term_timeout_s)

    def _drain_left(self) -> float:
        """Seconds that its running answers still have."""
        if self.record.drain_until_s is None:
            return 0.0
        left = self.record.drain_until_s - processes.uptime()
        # After a reboot, when nothing of it runs any more, the time may be any.
        return min(max(0.0, left), self._shared.settings.drain_timeout_s)

    async def forget(self) -> None:
        """Take its record away, once it has ended; more than once is once. Raises OSError where the disk refuses."""
        async with self._forgetting:
            if self.state.status is WorkerStatus.STOPPED:
                return
            self._writable = False
            try:
                await self._shared.writes.run(
                    self.record.id, functools.partial(self._shared.records.remove, self.record.id)
                )
            except OSError:
                self._writable = True
                raise
            self.state.stop()

    def try_again(self) -> None:
        """Start a failed worker once more, as a user asked."""
        self.record.failed, self.record.streak, self.record.boot_id = False, 0, None
        self.save()
        self.state.load()
        self.start()

    def view(self) -> Worker:
        """The worker as the API shows it."""
        record, request = self.record, self.record.request
        download = self._download()
        return Worker(
            id=record.id,
            name=request.name,
            model_ref=request.ref.base,
            filename=record.filename,
            backend=request.backend,
            device=request.all_devices[0],
            devices=request.all_devices,
            device_uuids=record.device_uuids,
            split_mode=request.split,
            tensor_split=record.tensor_split,
            slots=request.slots,
            slots_busy=self.slots_busy,
            tokens_per_second=self.tokens_per_second,
            ctx_per_slot=record.ctx_per_slot or request.ctx_per_slot,
            status=self.state.status,
            url=self._shared.probe.url(record.port) if record.port and self.process else None,
            pid=self.process.pid if self.process else None,
            started_at=record.started_at,
            restarts=record.restarts,
            memory_estimated_bytes=record.memory_estimated_bytes,
            device_memory_estimated_bytes=record.device_memory_bytes,
            host_memory_estimated_bytes=record.host_memory_bytes,
            last_error=record.last_error,
            percentage=download.view().percentage if download else self.percentage,
            download_id=record.download_id,
            threads=record.threads or request.threads,
            gpu_layers=request.gpu_layers,
            reuse_across_scopes=request.reuse_across_scopes,
            origin=request.origin,
        )

    def _download(self) -> Download | None:
        """The download that it waits for."""
        going_on = (download for download in self._shared.downloads.all() if download.record.is_open)
        return next((one for one in going_on if one.record.download_id == self.record.download_id), None)

    def fail(self, problem: Problem) -> None:
        """It cannot run; the record says so, and the next start of the agent leaves it at that."""
        log.warning("worker %s failed: %s", self.record.id, problem.message)
        self.record.failed, self.record.admitted, self.record.last_error = True, False, problem
        self.record.port = None
        self.save()
        self.state.fail()

    async def ask(self, *, not_older_than: float = 0.0) -> None:
        """Take over what the worker says of itself, unless it was asked within that many seconds."""
        now, asked = time.monotonic(), self.process
        if asked is None or self.record.port is None or now - self._asked_at < not_older_than:
            return
        self._asked_at = now
        health = await self._shared.probe.health(self.record.id, self.record.port)
        alive = await self._processes.lives(asked)
        # Each of its threads is a file to be read.
        progress = await self._processes.progress(asked) if is_doubted(health) else None
        if self.process is not asked or not alive or self.record.stopping:
            return
        self._pulse.asked(health, progress, time.monotonic())
        if health is None:
            self.tokens_per_second = 0.0
            return
        self.slots_busy, self.percentage = health.slots_busy, health.percentage
        self.tokens_per_second, self.confined = health.tokens_per_second, health.confined
        if health.status in {"idle", "busy", "overloaded"}:
            self.state.serve(max(health.slots_busy, health.status == "overloaded"))
            if self.record.ready_at is None:
                self.record.ready_at, self.record.ready_uptime_s = datetime.now(UTC), processes.uptime()
                self.record.ctx_per_slot = health.context_per_slot or self.record.ctx_per_slot
                self.save()

    async def _live(self) -> None:
        try:
            await self._shared.probe.load()
            ended = await self._take_over()
            while True:
                if ended is not None:
                    await self._after_end(ended)
                if self.process is None:
                    model = await self._once_it_can(self._prepared)
                    # A full disk is no fault of the worker's.
                    await self._once_it_can(functools.partial(self._launch, model))
                ended = await self._watch()
        except ApiError as error:
            self.fail(problem_of(error))
        except ending.WillNotEnd as error:
            self.fail(Problem(code="process_stuck", message=str(error), what_to_do="restart the machine"))
        except Exception:
            log.exception("worker %s", self.record.id)
            self.fail(Problem(code="internal_error", message="an error of the hive; its log says which"))
            with contextlib.suppress(ending.WillNotEnd):
                await self._end_processes(0, self._shared.settings.term_timeout_s)

    async def _take_over(self) -> _Ended | None:
        """Find what an earlier run of the agent left: a process that lives is adopted, one that does not is told of."""
        record = self.record
        found = await self._processes.left_over(record.id)
        if found is not None and await self._processes.lives(found):
            log.info("worker %s adopted: pid %d", record.id, found.pid)
            self.process, record.boot_id = found, processes.boot_id()
            return None
        if record.boot_id is None:
            return None
        if record.boot_id != processes.boot_id():
            record.boot_id, record.streak, record.restarts = None, 0, record.restarts + 1
            record.last_error = Problem(code="machine_restarted", message="the machine was restarted")
            self.save()
            return None
        if found is None:
            # Its agent died while starting it.
            return None
        return _Ended(await self._processes.how_it_ended(self.record.id), ending.WHILE_ALONE)

    async def _prepared(self) -> Path:
        return await preparation.prepare(self.record, self.state, self._shared, self.save)

    async def _once_it_can(self, work: Callable[[], Awaitable[T]]) -> T:
        """What `work` does or brings. What is in its way and may pass is shown, and waited for. Raises ApiError."""
        attempt = 0
        while True:
            try:
                return await work()
            except ApiError as error:
                if not may_pass(error):
                    raise
                problem = problem_of(error)
            attempt += 1
            self.record.last_error, self.record.boot_id = problem, None
            wait = backoff.delay(attempt)
            log.warning("worker %s: %s; trying again in %.1f s", self.record.id, problem.message, wait)
            await asyncio.sleep(wait)

    async def _launch(self, model: Path) -> None:
        """Start the process. The record says so before, so that a crash at any line is seen by the next start.

        Raises Failed, with `retry` where it may work later.
        """
        settings = self._shared.settings
        cpu_library = await self._shared.engine.cpu_library(self.record.request.backend)
        await self._end_processes(0, settings.term_timeout_s)
        self.record.boot_id, self.record.started_at = processes.boot_id(), datetime.now(UTC)
        self.record.ready_at = self.record.ready_uptime_s = None
        await self.saved()
        self.percentage = 0.0
        record = self.record.model_copy(deep=True)
        self.process = await self._processes.start(record, model, cpu_library)
        if self.process is None:
            await self._end_processes(0, settings.term_timeout_s)

    async def _watch(self) -> _Ended:
        """Ask the worker how it is until its process is gone."""
        began = time.monotonic()
        self._pulse = Pulse(began)
        allowed = self._shared.settings.ready_timeout_s
        allowed += self.record.promised().total() * READY_SECONDS_PER_BYTE
        hangs: str | None = None
        late = False
        while (watched := self.process) is not None and await self._processes.lives(watched):
            now = time.monotonic()
            if now - self._asked_at >= (ASK_S if self.state.serving else LOOK_S):
                await self.ask()
            if self.state.serving:
                hangs = self._pulse.hangs(time.monotonic())
            else:
                late = now - began > allowed
            if hangs or late:
                await self._processes.end(self.record.id, drain_s=0, term_s=0)
            await asyncio.sleep(LOOK_S)
        how = await self._processes.how_it_ended(self.record.id)
        self._gone()
        if hangs:
            return _Ended(how, f" by the hive: {hangs}", by_us="hung")
        if late:
            return _Ended(how, f" by the hive: it was not ready after {allowed:.0f} s", by_us="ready_timeout")
        return _Ended(how, ending.WHILE_SERVING if self.record.ready_at else ending.BEFORE_READY)

    async def _after_end(self, end: _Ended) -> None:
        """Decide what follows an end that nobody asked for. Raises Failed where that is nothing."""
        record = self.record
        known = await look(ending.known_failure, self._folder)
        if end.how is not None and end.how.exit_code == EXIT_KNOWN_FAILURE and known is not None:
            if known.code != "port_in_use" or self._port_races >= PORT_RACES:
                raise Failed(known.code, known.message, known.what_to_do)
            log.info("worker %s: port %s was taken by another; trying the next", record.id, record.port)
            self._port_races += 1
            record.port, record.boot_id = None, None
            self.save()
            return
        log_file = launch.log_file(self._shared.settings, record.id)
        problem = await look(ending.why, self._folder, log_file, end.how, end.when, by_us=end.by_us)
        record.streak = ending.streak_after(record.streak, self._served(end.how))
        record.last_error, record.boot_id = problem, None
        self.state.load()
        if ending.gives_up(record.streak):
            text = f"{record.streak} crashes in a row; the last one: {problem.message}"
            raise Failed("crash_loop", text, f"{problem.what_to_do}; ask for the same name and spec to try again")
        record.restarts += 1
        self._shared.count_restart()
        self.save()
        wait = backoff.delay(record.streak)
        log.warning("worker %s: %s; starting it again in %.1f s", record.id, problem.message, wait)
        await asyncio.sleep(wait)

    def _served(self, ended: WorkerEnded | None) -> float:
        """Seconds between its first readiness and its end, whatever the machine's clock was set to meanwhile."""
        if self.record.ready_at is None or self.record.ready_uptime_s is None:
            return 0.0
        until = ended.uptime_s if ended is not None else None
        return (until if until is not None else processes.uptime()) - self.record.ready_uptime_s

    async def _end_processes(self, drain_s: float, term_s: float) -> None:
        await self._processes.end(self.record.id, drain_s=drain_s, term_s=term_s)
        self._gone()

    def _gone(self) -> None:
        self.process, self.slots_busy, self.tokens_per_second, self.percentage = None, 0, 0.0, None
        self.confined = None

    def save(self) -> None:
        """Have the record written as it is now. A full disk ends no worker, nor keeps one from being stopped."""
        if self._writable:
            shared, worker_id = self._shared, self.record.id
            write = functools.partial(shared.records.write, worker_id, self.record.model_dump_json())
            shared.writes.begin_or_tell(worker_id, write, f"the record of worker {worker_id} cannot be written")

    async def saved(self) -> None:
        """Return when the record is written as it is now, or when the log says why it cannot be."""
        self.save()
        await self._shared.writes.settled(self.record.id)


@dataclass(frozen=True)
class _Ended:
    how: WorkerEnded | None
    when: str
    by_us: ending.Reason | None = None
