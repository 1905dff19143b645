"""Processes of workers that run and are not to: those that nobody knows, that have failed, and second ones."""

from __future__ import annotations

import logging
import signal
from collections.abc import Collection, Mapping

from llama_orch.web.tasks import OwnedTasks

from ..looking import look
from ..settings import HiveSettings
from . import ending, process_table
from .keeper import WorkerKeeper

log = logging.getLogger(__name__)


class Strays:
    """Finds them by the process table and ends them. `left_alone` are ids of which nobody knows what they should be."""

    def __init__(
        self,
        settings: HiveSettings,
        keepers: Mapping[str, WorkerKeeper],
        left_alone: Collection[str],
        tasks: OwnedTasks,
    ) -> None:
        self._settings = settings
        self._keepers = keepers
        self._left_alone = left_alone
        self._tasks = tasks
        self._ending: set[str] = set()

    async def end(self, found: dict[str, list[process_table.Process]]) -> None:
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
                        await look(one.send, signal.SIGKILL)

    async def _end_all(self, worker_id: str) -> None:
        try:
            await ending.end(self._settings.state_dir, worker_id, drain_s=0, term_s=self._settings.term_timeout_s)
        except ending.WillNotEnd as error:
            log.error("%s: restart the machine", error)  # noqa: TRY400
        finally:
            self._ending.discard(worker_id)
