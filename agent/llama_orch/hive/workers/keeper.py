"""One worker's life: model, process, watch, restart, end. Each keeper is one task; its record survives it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from llama_orch.base import backoff, child, processes
from llama_orch.base.tokens import Token
from llama_orch.contract.common import Problem
from llama_orch.contract.errors import ApiError
from llama_orch.contract.hive import Worker, WorkerStatus
from llama_orch.contract.model_ref import FileRef, HubRef
from llama_orch.contract.process import EXIT_KNOWN_FAILURE, WorkerEnded

from ..devices.engine_test import EngineTest
from ..looking import look
from ..models import memory, reading
from ..models.downloads.job import Job
from ..models.downloads.service import Downloads
from ..models.memory import Needed
from ..ordered_writes import OrderedWrites
from ..problems import Failed, as_failed
from ..settings import HiveSettings
from . import ending, launch, process_table, requirements
from . import probe as worker_probe
from .probe import Probe
from .pulse import Progress, Pulse, is_doubted
from .records import WorkerRecord, WorkerRecords
from .state import WorkerState

log = logging.getLogger(__name__)
T = TypeVar("T")
LOOK_S = 0.25
ASK_S = 1.0
PORT_RACES = 10
READY_SECONDS_PER_BYTE = 20 / 1e9


@dataclass
class Surroundings:
    """What keepers share. `threads_used` speaks of all workers but the one with that id.

    `take_on` promises a worker memory, and raises ApiError where it cannot be started there; `give_port` gives it a
    port, and raises NotReady where there is none. What is written of a worker goes through `writes`, by its id.
    """

    settings: HiveSettings
    records: WorkerRecords
    writes: OrderedWrites
    downloads: Downloads
    probe: Probe
    engine: EngineTest
    inference_token: Token
    give_port: Callable[[WorkerRecord], Awaitable[None]]
    threads_used: Callable[[str], int]
    take_on: Callable[[WorkerRecord, Needed], Awaitable[None]]
    count_restart: Callable[[], None]


class WorkerKeeper:
    """Keeps one worker running until it is stopped or has failed."""

    def __init__(self, record: WorkerRecord, around: Surroundings) -> None:
        self.record = record
        self.state = WorkerState()
        self.process: process_table.Process | None = None
        self.slots_busy = 0
        self.tokens_per_second = 0.0
        # None until it has said so.
        self.confined: bool | None = None
        self._percentage: float | None = None
        self._around = around
        self._folder = around.records.folder(record.id)
        self._task: asyncio.Task[None] | None = None
        self._shim: subprocess.Popen[bytes] | None = None
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

        Raises worker_ending.WillNotEnd.
        """
        record, settings = self.record, self._around.settings
        if not record.stopping:
            record.stopping = True
            # Of its present process, which may have answers under way whether we have asked it yet or not.
            was_ready = record.ready_at is not None
            record.drain_until_s = processes.uptime() + settings.drain_timeout_s if was_ready else None
        await self.saved()
        await self.leave()
        # A start that its end came in between of is over then, and its process is found.
        await self._around.writes.settled(record.id)
        self.state.drain()
        if self.process is None:
            self.process = await look(_recorded, self._folder)
        await self._end_processes(self._drain_left(), settings.term_timeout_s)

    def _drain_left(self) -> float:
        """Seconds that its running answers still have."""
        if self.record.drain_until_s is None:
            return 0.0
        left = self.record.drain_until_s - processes.uptime()
        # After a reboot, when nothing of it runs any more, the time may be any.
        return min(max(0.0, left), self._around.settings.drain_timeout_s)

    async def forget(self) -> None:
        """Take its record away, once it has ended; more than once is once. Raises OSError where the disk refuses."""
        async with self._forgetting:
            if self.state.status is WorkerStatus.STOPPED:
                return
            self._writable = False
            try:
                await self._around.writes.run(
                    self.record.id, functools.partial(self._around.records.remove, self.record.id)
                )
            except OSError:
                self._writable = True
                raise
            self.state.stop()

    def try_again(self) -> None:
        """Start a failed worker once more, as a user asked."""
        self.record.failed, self.record.streak, self.record.boot_id = False, 0, None
        self._save()
        self.state.load()
        self.start()

    def fail(self, problem: Problem) -> None:
        """It cannot run; the record says so, and the next start of the agent leaves it at that."""
        log.warning("worker %s failed: %s", self.record.id, problem.message)
        self.record.failed, self.record.admitted, self.record.last_error = True, False, problem
        self.record.port = None
        self._save()
        self.state.fail()

    def view(self) -> Worker:
        """The worker as the API shows it."""
        record, request, download = self.record, self.record.request, self.download()
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
            url=self._around.probe.url(record.port) if record.port and self.process else None,
            pid=self.process.pid if self.process else None,
            started_at=record.started_at,
            restarts=record.restarts,
            memory_estimated_bytes=record.memory_estimated_bytes,
            device_memory_estimated_bytes=record.device_memory_bytes,
            host_memory_estimated_bytes=record.host_memory_bytes,
            last_error=record.last_error,
            percentage=download.view().percentage if download else self._percentage,
            download_id=record.download_id,
            threads=record.threads or request.threads,
            gpu_layers=request.gpu_layers,
            reuse_across_scopes=request.reuse_across_scopes,
            origin=request.origin,
        )

    def download(self) -> Job | None:
        """The download that it waits for."""
        jobs = (job for job in self._around.downloads.all() if job.record.is_open)
        return next((job for job in jobs if job.record.download_id == self.record.download_id), None)

    async def ask(self, *, not_older_than: float = 0.0) -> None:
        """Take over what the worker says of itself, unless it was asked within that many seconds."""
        now, asked = time.monotonic(), self.process
        if asked is None or self.record.port is None or now - self._asked_at < not_older_than:
            return
        self._asked_at = now
        health = await self._around.probe.health(self.record.id, self.record.port)
        alive, progress = await look(_look_at, asked, is_doubted(health))
        if self.process is not asked or not alive or self.record.stopping:
            return
        self._pulse.asked(health, progress, time.monotonic())
        if health is None:
            self.tokens_per_second = 0.0
            return
        self.slots_busy, self._percentage = health.slots_busy, health.percentage
        self.tokens_per_second, self.confined = health.tokens_per_second, health.confined
        if health.status in {"idle", "busy", "overloaded"}:
            self.state.serve(max(health.slots_busy, health.status == "overloaded"))
            if self.record.ready_at is None:
                self.record.ready_at, self.record.ready_uptime_s = datetime.now(UTC), processes.uptime()
                self.record.ctx_per_slot = health.context_per_slot or self.record.ctx_per_slot
                self._save()

    async def _live(self) -> None:
        try:
            await asyncio.to_thread(worker_probe.load)
            ended = await self._take_over()
            while True:
                if ended is not None:
                    await self._after_end(ended)
                if self.process is None:
                    await self._launch_once_it_can(await self._once_it_can(self._prepare))
                ended = await self._watch()
        except Failed as failed:
            self.fail(failed.problem)
        except ending.WillNotEnd as error:
            self.fail(Problem(code="process_stuck", message=str(error), what_to_do="restart the machine"))
        except Exception:
            log.exception("worker %s", self.record.id)
            self.fail(Problem(code="internal_error", message="an error of the hive; its log says which"))
            with contextlib.suppress(ending.WillNotEnd):
                await self._end_processes(0, self._around.settings.term_timeout_s)

    async def _take_over(self) -> _Ended | None:
        """Find what an earlier run of the agent left: a process that lives is adopted, one that does not is told of."""
        record = self.record
        found = await launch.left_over(self._folder, self._around.settings.state_dir)
        if found is not None and found.lives():
            log.info("worker %s adopted: pid %d", record.id, found.pid)
            self.process, record.boot_id = found, processes.boot_id()
            return None
        if record.boot_id is None:
            return None
        if record.boot_id != processes.boot_id():
            record.boot_id, record.streak, record.restarts = None, 0, record.restarts + 1
            record.last_error = Problem(code="machine_restarted", message="the machine was restarted")
            self._save()
            return None
        if found is None:
            # Its agent died while starting it.
            return None
        return _Ended(await launch.how_it_ended(self._folder), ending.WHILE_ALONE)

    async def _prepare(self) -> Path:
        """The model's first file, downloaded where it is not there, and all of the record that depends on it."""
        record, request, around = self.record, self.record.request, self._around
        path = self._path_of_record()
        if path is None or not await asyncio.to_thread(path.exists):
            path = await self._get_model()
        facts = await reading.facts(path, around.settings.state_dir)
        record.model_path = str(path)
        record.ctx_per_slot = requirements.context(request.ctx_per_slot, facts)
        needed = memory.of_worker(facts, request, record.ctx_per_slot, record.tensor_split)
        if record.admitted:
            record.promise(needed)
        else:
            await around.take_on(record, needed)
        record.threads = requirements.threads(request.threads, around.threads_used(record.id))
        # Its own port again where that is free, so that those who know its address find it.
        await around.give_port(record)
        return path

    def _path_of_record(self) -> Path | None:
        """Where the record says that the model is; None where it says nothing, or what a reference cannot mean."""
        record, ref = self.record, self.record.request.ref
        if record.model_path is None or (isinstance(ref, FileRef) and record.model_path != ref.path):
            return None
        path = Path(record.model_path)
        if isinstance(ref, HubRef):
            below = path.is_relative_to(self._around.settings.models_dir) and ".." not in path.parts
            return path if below else None
        return path

    async def _get_model(self) -> Path:
        ref, downloads = self.record.request.ref, self._around.downloads
        if isinstance(ref, FileRef):
            return Path(ref.path)
        job = await downloads.request(ref, self.record.request.origin, for_worker=True)
        self.record.download_id, self.record.filename = job.record.download_id, job.record.filename
        self._save()
        if not job.ended.is_set():
            self.state.download()
            await job.ended.wait()
        self.state.load()
        if not job.ready:
            problem = job.record.error or Problem(
                code="download_cancelled", message="its model's download was cancelled"
            )
            raise Failed(problem.code, problem.message, problem.what_to_do)
        return downloads.path_of(job.record)

    async def _launch_once_it_can(self, model: Path) -> None:
        """Start the process, and try again where what is in the way passes: a full disk is no fault of the worker's."""
        await self._once_it_can(lambda: self._launch(model))

    async def _once_it_can(self, work: Callable[[], Awaitable[T]]) -> T:
        """What `work` does or brings. What is in its way and may pass is shown, and waited for. Raises Failed."""
        attempt = 0
        while True:
            try:
                return await work()
            except Failed as error:
                failed = error
            except ApiError as error:
                failed = as_failed(error)
            if not failed.retry:
                raise failed
            attempt += 1
            self.record.last_error, self.record.boot_id = failed.problem, None
            wait = backoff.delay(attempt)
            log.warning("worker %s: %s; trying again in %.1f s", self.record.id, failed.problem.message, wait)
            await asyncio.sleep(wait)

    async def _launch(self, model: Path) -> None:
        """Start the process. The record says so before, so that a crash at any line is seen by the next start.

        Raises Failed, with `retry` where it may work later.
        """
        settings = self._around.settings
        cpu_library = await self._around.engine.cpu_library(self.record.request.backend)
        await self._end_processes(0, settings.term_timeout_s)
        self.record.boot_id, self.record.started_at = processes.boot_id(), datetime.now(UTC)
        self.record.ready_at = self.record.ready_uptime_s = None
        await self.saved()
        self._percentage = 0.0
        record = self.record.model_copy(deep=True)
        await self._around.writes.run(record.id, lambda: self._start_shim(record, model, cpu_library))
        assert self._shim is not None  # noqa: S101  it was started
        child.reap_at_end(self._shim)
        self.process = await launch.written_down(self._folder, self._shim)
        if self.process is None:
            await self._end_processes(0, settings.term_timeout_s)

    def _start_shim(self, record: WorkerRecord, model: Path, cpu_library: str | None) -> None:
        # In a thread, and to its end whoever leaves meanwhile: so that it is known, and reaped.
        around = self._around
        self._shim = launch.start(
            record, self._folder, model, around.settings, around.inference_token, cpu_library=cpu_library
        )

    async def _watch(self) -> _Ended:
        """Ask the worker how it is until its process is gone."""
        began = time.monotonic()
        self._pulse = Pulse(began)
        allowed = self._around.settings.ready_timeout_s
        allowed += self.record.promised().total() * READY_SECONDS_PER_BYTE
        hangs: str | None = None
        late = False
        while (watched := self.process) is not None and await look(watched.lives):
            now = time.monotonic()
            if now - self._asked_at >= (ASK_S if self.state.serving else LOOK_S):
                await self.ask()
            if self.state.serving:
                hangs = self._pulse.hangs(time.monotonic())
            else:
                late = now - began > allowed
            if hangs or late:
                await ending.end(self._around.settings.state_dir, self.record.id, drain_s=0, term_s=0)
            await asyncio.sleep(LOOK_S)
        how = await launch.how_it_ended(self._folder)
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
            self._save()
            return
        log_file = launch.log_file(self._around.settings, record.id)
        problem = await look(ending.why, self._folder, log_file, end.how, end.when, by_us=end.by_us)
        record.streak = backoff.streak_after(record.streak, self._served(end.how))
        record.last_error, record.boot_id = problem, None
        self.state.load()
        if backoff.gives_up(record.streak):
            text = f"{record.streak} crashes in a row; the last one: {problem.message}"
            raise Failed("crash_loop", text, f"{problem.what_to_do}; ask for the same name and spec to try again")
        record.restarts += 1
        self._around.count_restart()
        self._save()
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
        await ending.end(self._around.settings.state_dir, self.record.id, drain_s=drain_s, term_s=term_s)
        self._gone()

    def _gone(self) -> None:
        if self._shim is not None:
            self._shim.poll()
        self.process, self.slots_busy, self.tokens_per_second, self._percentage = None, 0, 0.0, None
        self.confined = None

    def _save(self) -> None:
        """Have the record written as it is now. A full disk ends no worker, nor keeps one from being stopped."""
        if self._writable:
            around, worker_id = self._around, self.record.id
            write = functools.partial(around.records.write, worker_id, self.record.model_dump_json())
            around.writes.begin_or_tell(worker_id, write, f"the record of worker {worker_id} cannot be written")

    async def saved(self) -> None:
        """Return when the record is written as it is now, or when the log says why it cannot be."""
        self._save()
        await self._around.writes.settled(self.record.id)


def _look_at(one: process_table.Process, closely: bool) -> tuple[bool, Progress | None]:
    # Each of its threads is a file to be read.
    return one.lives(), process_table.progress(one.pid) if closely else None


def _recorded(folder: Path) -> process_table.Process | None:
    found = process_table.recorded(folder)
    return found if found is not None and found.lives() else None


@dataclass(frozen=True)
class _Ended:
    how: WorkerEnded | None
    when: str
    by_us: ending.Reason | None = None
