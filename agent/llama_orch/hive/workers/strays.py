"""Processes of workers that run and are not to: those that nobody knows, that have failed, and second ones."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

from llama_orch.web.tasks import OwnedTasks

from ..settings import HiveSettings
from . import ending
from .keeper import WorkerKeeper
from .process_table import Process
from .processes import WorkerProcesses

log = logging.getLogger(__name__)


class Strays:
    """Finds them by the process table and ends them. `left_alone` are ids of which nobody knows what they should be."""

    def __init__(
        self,
        settings: HiveSettings,
        processes: WorkerProcesses,
        keepers: Mapping[str, WorkerKeeper],
        left_alone: Collection[str],
        tasks: OwnedTasks,
    ) -> None:
        self._settings = settings
        self._processes = processes
        self._keepers = keepers
        self._left_alone = left_alone
        self._tasks = tasks
        self._ending: set[str] = set()

    async def end(self, found: dict[str, list[Process]]) -> None:
        """End what of these processes, by worker id, is not to run."""
        for worker_id, processes in found.items():
            keeper = self._keepers.get(worker_id)
            if worker_id in self._left_alone:
                continue
            if keeper is None or keeper.record.failed:
                if worker_id not in self._ending:
                    log.warning("worker %s runs without a record that wants it: ended", worker_id)
                    self._ending.add(worker_id)
                    self._tasks.start(self._end_all(worker_id), f"end {worker_id}")
            elif keeper.process is not None and keeper.process in processes:
                for one in processes:
                    if one != keeper.process and not one.is_shim:
                        log.warning(
                            "worker %s is pid %d; a second one, %d, is ended", worker_id, keeper.process.pid, one.pid
                        )
                        await self._processes.kill(one)

    async def _end_all(self, worker_id: str) -> None:
        try:
            await self._processes.end(worker_id, drain_s=0, term_s=self._settings.term_timeout_s)
        except ending.WillNotEnd as error:
            log.error("%s: restart the machine", error)  # noqa: TRY400
        finally:
            self._ending.discard(worker_id)
