"""Twins in memory of what a hive meets: processes of workers, their answers, and the hub.

They keep what `tests/integration/hive/test_twins.py` asks of them and of the real ones alike.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from llama_orch.base import processes
from llama_orch.contract.inference import WorkerHealth
from llama_orch.contract.model_ref import HubRef
from llama_orch.contract.process import WorkerEnded
from llama_orch.hive.models.downloads.lines import Progress
from llama_orch.hive.models.hub.description import HubFile, Resolved
from llama_orch.hive.problems import Failed
from llama_orch.hive.workers.process_table import Process
from llama_orch.hive.workers.pulse import Progress as Work
from llama_orch.hive.workers.records import WorkerRecord

# No process of any machine has such a number.
_PIDS = itertools.count(2**30)


class MemoryProcesses:
    """Processes that are numbers. `refused` is raised by a start; while `held`, none ends."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.drains: list[float] = []
        self.refused: Failed | None = None
        self.held = asyncio.Event()
        self.held.set()
        self.ending = asyncio.Event()
        self._alive: dict[str, Process] = {}
        self._last: dict[str, Process] = {}
        self._ended: dict[str, WorkerEnded | None] = {}

    async def find(self) -> dict[str, list[Process]]:
        return {worker_id: [process] for worker_id, process in self._alive.items()}

    async def start(self, record: WorkerRecord, model: Path, cpu_library: str | None) -> Process | None:
        del model, cpu_library
        if self.refused is not None:
            raise self.refused
        self.started.append(record.id)
        self._ended.pop(record.id, None)
        process = self._alive[record.id] = self._last[record.id] = Process(next(_PIDS), 1)
        return process

    async def left_over(self, worker_id: str) -> Process | None:
        return self._last.get(worker_id)

    async def recorded(self, worker_id: str) -> Process | None:
        return self._alive.get(worker_id)

    async def lives(self, process: Process) -> bool:
        return process in self._alive.values()

    async def progress(self, process: Process) -> Work | None:
        return Work(cpu=0, major_faults=0) if await self.lives(process) else None

    async def kill(self, process: Process) -> None:
        for worker_id, alive in list(self._alive.items()):
            if alive == process:
                self.exit(worker_id, ended(signal=9))

    async def end(self, worker_id: str, *, drain_s: float, term_s: float) -> None:
        del term_s
        if worker_id not in self._alive:
            return
        self.drains.append(drain_s)
        self.ending.set()
        await self.held.wait()
        self.exit(worker_id, ended(exit_code=0))

    async def how_it_ended(self, worker_id: str) -> WorkerEnded | None:
        return self._ended.get(worker_id)

    def exit(self, worker_id: str, how: WorkerEnded | None) -> None:
        """The worker's process ends by itself; None where nobody sees how."""
        del self._alive[worker_id]
        self._ended[worker_id] = how

    def serves(self, worker_id: str) -> bool:
        """Whether it has a process."""
        return worker_id in self._alive


def ended(*, exit_code: int | None = None, signal: int | None = None) -> WorkerEnded:
    """An end at this moment."""
    return WorkerEnded(exit_code=exit_code, signal=signal, at=datetime.now(UTC), uptime_s=processes.uptime())


class MemoryProbe:
    """Answers for the workers of `processes`: `ready` are those that have loaded their models."""

    def __init__(self, workers: MemoryProcesses) -> None:
        self.ready: set[str] = set()
        self._workers = workers

    def url(self, port: int) -> str:
        return f"http://hive:{port}"

    async def load(self) -> None:
        pass

    async def health(self, worker_id: str, port: int) -> WorkerHealth | None:
        del port
        if not self._workers.serves(worker_id):
            return None
        ready = worker_id in self.ready
        return WorkerHealth(
            status="idle" if ready else "loading",
            worker_id=worker_id,
            percentage=100.0 if ready else 0.0,
            slots=1,
            slots_busy=0,
        )

    async def close(self) -> None:
        pass


class MemorySource:
    """A hub that has one model in each repository, of `size` bytes, which comes when it is let."""

    def __init__(self, size: int = 5, filename: str = "m.gguf") -> None:
        self.size = size
        self.filename = filename
        self.commit = "c" * 40
        # Raised by each question and each download, where it is set.
        self.failure: Failed | None = None
        self.unknown: set[str] = set()
        self.asked: list[HubRef] = []
        self.arrives = asyncio.Event()
        self.running = 0
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def resolve(self, ref: HubRef) -> Resolved:
        self.asked.append(ref)
        if self.failure is not None:
            raise self.failure
        if ref.repo in self.unknown:
            raise Failed("model_not_found", f"the hub has no repository {ref.repo}", "check the name")
        return Resolved(
            repo=ref.repo,
            revision=ref.revision or "main",
            commit=self.commit,
            filename=self.filename,
            files=[HubFile(name=self.filename, size=self.size, etag="a" * 64)],
        )

    async def fetch(self, model: Resolved, on_progress: Callable[[Progress], None]) -> None:
        self.running += 1
        assert self.running == 1 or len(self.asked) > 1, "two would write to the same file"
        try:
            await self.arrives.wait()
            if self.failure is not None:
                raise self.failure
            on_progress(Progress(event="downloading", done=model.size_bytes))
        finally:
            await self.may_end.wait()
            self.running -= 1
