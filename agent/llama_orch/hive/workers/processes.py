"""The processes of a hive's workers: started, found, watched and ended. All that the hive does to them goes by here."""

from __future__ import annotations

import asyncio
import functools
import signal
import subprocess
from pathlib import Path
from typing import Protocol

from llama_orch.base import child
from llama_orch.base.tokens import Token
from llama_orch.contract.process import WorkerEnded

from ..looking import look
from ..ordered_writes import OrderedWrites
from ..settings import HiveSettings
from . import ending, launch, process_table
from .process_table import Process
from .pulse import Progress
from .records import WorkerRecord, WorkerRecords


class WorkerProcesses(Protocol):
    """What the hive does to processes of workers, each worker by its id."""

    async def find(self) -> dict[str, list[Process]]:
        """All that live, shims too, by worker id."""
        ...

    async def start(self, record: WorkerRecord, model: Path, cpu_library: str | None) -> Process | None:
        """Start a worker's process; None where it ended at once, or did not come to run in its time.

        Raises Failed, with `retry` where it may work later. Nothing of this worker runs before.
        """
        ...

    async def left_over(self, worker_id: str) -> Process | None:
        """The one that an earlier run of the agent started, whether it lives or not; None where there is none."""
        ...

    async def recorded(self, worker_id: str) -> Process | None:
        """The one that was written down last, where it lives."""
        ...

    async def lives(self, process: Process) -> bool:
        """Whether it still runs."""
        ...

    async def progress(self, process: Process) -> Progress | None:
        """What it has had of the machine so far; None where it is gone."""
        ...

    async def kill(self, process: Process) -> None:
        """End this one at once."""
        ...

    async def end(self, worker_id: str, *, drain_s: float, term_s: float) -> None:
        """End all of a worker: drain, SIGTERM, SIGKILL, each with its seconds. Raises ending.WillNotEnd."""
        ...

    async def how_it_ended(self, worker_id: str) -> WorkerEnded | None:
        """How its last one ended; None where nobody saw."""
        ...


class HostProcesses:
    """Those of this machine, each below a shim. What is written for a worker goes through `writes`, by its id."""

    def __init__(self, settings: HiveSettings, records: WorkerRecords, writes: OrderedWrites, token: Token) -> None:
        self._settings = settings
        self._records = records
        self._writes = writes
        self._token = token

    async def find(self) -> dict[str, list[Process]]:
        """All that live, shims too, by worker id."""
        return await look(process_table.find, self._settings.state_dir)

    async def start(self, record: WorkerRecord, model: Path, cpu_library: str | None) -> Process | None:
        """Start a worker's process; None where it ended at once, or did not come to run in its time."""
        folder = self._records.folder(record.id)
        # In a thread, and to its end whoever leaves meanwhile: so that it is known, and reaped.
        start = functools.partial(
            launch.start, record, folder, model, self._settings, self._token, cpu_library=cpu_library
        )
        starting = self._writes.begin(record.id, start)
        starting.add_done_callback(_reap)
        return await launch.written_down(folder, await asyncio.shield(starting))

    async def left_over(self, worker_id: str) -> Process | None:
        """The one that an earlier run of the agent started, whether it lives or not; None where there is none."""
        return await launch.left_over(self._records.folder(worker_id), self._settings.state_dir)

    async def recorded(self, worker_id: str) -> Process | None:
        """The one that was written down last, where it lives."""
        found = await look(process_table.recorded, self._records.folder(worker_id))
        return found if found is not None and await look(found.lives) else None

    async def lives(self, process: Process) -> bool:
        """Whether it still runs."""
        return await look(process.lives)

    async def progress(self, process: Process) -> Progress | None:
        """What it has had of the machine so far; None where it is gone."""
        return await look(process_table.progress, process.pid)

    async def kill(self, process: Process) -> None:
        """End this one at once."""
        await look(process.send, signal.SIGKILL)

    async def end(self, worker_id: str, *, drain_s: float, term_s: float) -> None:
        """End all of a worker: drain, SIGTERM, SIGKILL, each with its seconds. Raises ending.WillNotEnd."""
        await ending.end(self._settings.state_dir, worker_id, drain_s=drain_s, term_s=term_s)

    async def how_it_ended(self, worker_id: str) -> WorkerEnded | None:
        """How its last one ended; None where nobody saw."""
        return await launch.how_it_ended(self._records.folder(worker_id))


def _reap(starting: asyncio.Task[subprocess.Popen[bytes]]) -> None:
    if not starting.cancelled() and starting.exception() is None:
        child.reap_at_end(starting.result())
