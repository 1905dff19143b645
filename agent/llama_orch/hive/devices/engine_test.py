"""The engine's self-test as the hive keeps it: once for each machine, build and boot, before a worker needs it.

What is tried runs in the worker's code and in processes of its own (`llama_orch.worker.self_test`): the hive loads
nothing of the engine.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from llama_orch.base import files, processes
from llama_orch.base.one_answer import NoAnswer, ask
from llama_orch.contract.devices import Backend, EngineLibrary, EngineStatus, LibraryResult

from ..child_environment import child_environment
from ..problems import Failed
from . import engine_build

log = logging.getLogger(__name__)
FILE = "engine.json"
MODULE = "llama_orch.worker.self_test"
# More than all that it tries may take: it bounds each by itself.
PATIENCE_S = 1200.0
_USABLE = {LibraryResult.PASSED, LibraryResult.NOT_TESTED}
_LIBRARIES = TypeAdapter(list[EngineLibrary])


class _Kept(BaseModel):
    """What stands in the state folder."""

    boot_id: str
    status: EngineStatus
    confined: bool = False


class EngineTest:
    """Runs the test when the agent starts, unless its result is kept, and tells what may be used."""

    def __init__(self, state_dir: Path, *, confined: bool) -> None:
        self._file = state_dir / FILE
        self._confined = confined
        self._status = EngineStatus(build=engine_build.identity())
        self._running: dict[Backend, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Begin; nobody waits for it but who needs a library."""
        if (kept := self._kept()) is not None:
            self._status = kept
            self._tell()
            return
        cpu = self._running["cpu"] = asyncio.create_task(self._try_cpu(), name="self-test of the engine")
        self._running["cuda"] = asyncio.create_task(self._try_cuda(cpu), name="self-test of CUDA")

    async def stop(self) -> None:
        """End what still runs."""
        for task in self._running.values():
            task.cancel()
        if self._running:
            await asyncio.wait(self._running.values(), timeout=5)

    async def wait(self) -> None:
        """Return when all has been tried."""
        if self._running:
            await asyncio.wait(self._running.values())

    def status(self) -> EngineStatus:
        """What is known now."""
        return self._status

    def failed(self, backend: Backend) -> EngineLibrary | None:
        """The library for which the backend may not be used; None where it may, as far as is known."""
        found = [one for one in self._status.libraries if one.backend == backend]
        return None if not found or any(one.result in _USABLE for one in found) else found[0]

    async def cpu_library(self, backend: Backend) -> str | None:
        """The CPU library for a worker of this backend, None for the engine's own choice; waits for the test.

        Raises Failed where no library of the backend computes on this machine.
        """
        if (running := self._running.get(backend)) is not None:
            await asyncio.shield(running)
        if (wrong := self.failed(backend)) is not None:
            raise unusable(wrong)
        return self._status.cpu_library

    async def _try_cpu(self) -> None:
        found = await _run(["--json"])
        chosen = next((one.file for one in found if one.result in _USABLE), None)
        self._status = self._status.model_copy(update={"libraries": found, "cpu_library": chosen})

    async def _try_cuda(self, cpu: asyncio.Task[None]) -> None:
        await asyncio.shield(cpu)
        if engine_build.has_cuda() and self._status.cpu_library is not None:
            confined = ["--confined"] if self._confined else []
            found = await _run(["--json", "--cuda", self._status.cpu_library, *confined])
            self._status = self._status.model_copy(update={"libraries": [*self._status.libraries, *found]})
        # Nothing found is no result: the next start of the agent tries again.
        if self._status.libraries:
            self._status = self._status.model_copy(update={"tested_at": datetime.now(UTC)})
            await asyncio.to_thread(self._keep)
        self._tell()

    def _kept(self) -> EngineStatus | None:
        try:
            kept = _Kept.model_validate(files.read_json(self._file))
        except (ValidationError, OSError):
            return None
        wanted = (processes.boot_id(), self._status.build, self._confined)
        return kept.status if (kept.boot_id, kept.status.build, kept.confined) == wanted else None

    def _keep(self) -> None:
        # One that could not be tried may be tried with success at the next start.
        if any(one.result is LibraryResult.NOT_TESTED for one in self._status.libraries):
            return
        try:
            kept = _Kept(boot_id=processes.boot_id(), status=self._status, confined=self._confined)
            files.write_text(self._file, kept.model_dump_json())
        except OSError as error:
            log.warning("the result of the engine's self-test cannot be kept: %s", error.strerror)

    def _tell(self) -> None:
        for one in self._status.libraries:
            text = f" ({one.reason})" if one.reason else ""
            level = logging.INFO if one.result in _USABLE else logging.ERROR
            log.log(level, "engine: self-test of %s: %s%s", one.name, one.result.value, text)
        if self._status.cpu_library is None:
            log.error("engine: no CPU library passed its self-test")


def unusable(library: EngineLibrary) -> Failed:
    """Why no worker can be started with this library's backend."""
    return Failed(
        "engine_unusable",
        f"the engine does not compute on this machine: {library.name}: {library.result.value}"
        + (f" ({library.reason})" if library.reason else ""),
        "GET /api/v1/devices shows its self-test; build the wheelhouse anew and provision this machine again, for CUDA "
        "see to its driver; the test is made again after the next boot, or where the engine was changed",
    )


async def _run(arguments: list[str]) -> list[EngineLibrary]:
    """What the self-test found; nothing where it could not be run."""
    try:
        return await ask(
            MODULE,
            *arguments,
            understand=_LIBRARIES.validate_json,
            within_s=PATIENCE_S,
            environment=child_environment(),
            stderr=asyncio.subprocess.PIPE,
        )
    except NoAnswer as error:
        last = error.answer.complaint.decode(errors="replace").strip().splitlines()[-1:]
        log.error("engine: the self-test %s within %.0f s: %s", error, PATIENCE_S, *last or [""])  # noqa: TRY400
        return []
