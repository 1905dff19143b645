"""Who gets the memory, the GPUs and the ports: looked at and promised to one worker after the other."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Protocol

from llama_orch.contract.devices import Gpu
from llama_orch.contract.hive import SpawnRequest

from ..devices import machine
from ..devices.gpus import Gpus
from ..looking import look
from ..models.memory import Needed
from ..settings import HiveSettings
from . import requirements
from .process_table import Process
from .records import RAM, WorkerRecord
from .state import WorkerState


class Admitted(Protocol):
    """A worker that was admitted, in what is to be known of it here."""

    record: WorkerRecord
    state: WorkerState
    process: Process | None


class Admission:
    """Checks workers against the machine and against each other. `workers` are those that were admitted, by id.

    `lock` is held while a worker is admitted, and while a model's files are deleted: none is started whose file then
    goes. `giving_port` is held from the choice of a port until the record that gets it is among the others.
    """

    def __init__(self, settings: HiveSettings, gpus: Gpus, workers: Mapping[str, Admitted]) -> None:
        self.lock = asyncio.Lock()
        self.giving_port = asyncio.Lock()
        self._settings = settings
        self._gpus = gpus
        self._workers = workers

    async def the_gpus(self, request: SpawnRequest, *, now: bool = False) -> list[Gpu]:
        """The GPUs that are meant, none for the CPU; `now` as in `Gpus.read`. Raises ApiError where one is unfit."""
        found = await self._gpus.read(now=now and request.backend == "cuda")
        return requirements.the_gpus(request, found.status, found.gpus, found.conditions)

    def threads_used(self, but: str) -> int:
        """How many cores the workers but the one with that id keep busy."""
        return sum(k.record.cpu_threads for k in self._wanted(but) if k.record.request.backend == "cpu")

    async def give_port(self, record: WorkerRecord) -> None:
        """Give one of the workers a port, its own again where that is free. Raises NotReady where there is none."""
        async with self.giving_port:
            record.port = await self.free_port(record)

    async def free_port(self, record: WorkerRecord) -> int:
        """A port that nobody has; `giving_port` is held. Raises NotReady where there is none."""
        others = (worker.record for worker in self._workers.values() if worker.record.id != record.id)
        taken = {other.port for other in others if other.port is not None}
        return await look(requirements.free_port, self._settings, taken, prefer=record.port)

    async def take_on(self, record: WorkerRecord, needed: Needed) -> None:
        """Promise a worker that is about to be started so much. Raises ApiError where it cannot be.

        Then what it was promised before stays promised to it, and no more.
        """
        wanted = record.model_copy()
        wanted.promise(needed)
        async with self.lock:
            await self.check(wanted)
            record.promise(needed)
            record.admitted = True

    async def check(self, record: WorkerRecord) -> None:
        """Raises ApiError where the worker cannot be started on its devices as they are now; `lock` is held."""
        spoken_for = await self.spoken_for(record.id)
        gpus: list[Gpu] = []
        if record.device_uuids:
            found = await self._gpus.read(now=True)
            gpus = requirements.bound_gpus(record.device_uuids, found.gpus, found.conditions)
        await self.check_fits(record, gpus, spoken_for)

    async def check_fits(self, record: WorkerRecord, gpus: list[Gpu], spoken_for: Counter[str]) -> None:
        """Raises DoesNotFit, naming the device. `gpus` are those of the record, read after `spoken_for`."""
        await look(self._check_fits, record, gpus, spoken_for)

    def _check_fits(self, record: WorkerRecord, gpus: list[Gpu], spoken_for: Counter[str]) -> None:
        by_uuid = {gpu.uuid: gpu for gpu in gpus}
        for memory, needed in record.promised().items():
            gpu = by_uuid.get(memory)
            available, of_what = requirements.free_memory(self._settings, gpu, spoken_for)
            whole = requirements.whole_memory(self._settings, gpu)
            requirements.check_memory(needed, available, of_what, whole=whole, device=gpu.index if gpu else None)

    async def tensor_split(
        self, request: SpawnRequest, gpus: list[Gpu], spoken_for: Counter[str]
    ) -> list[float] | None:
        """The part of the model that each of several GPUs gets, None on one."""
        if request.split is None:
            return None
        found = await look(lambda: [requirements.free_memory(self._settings, gpu, spoken_for) for gpu in gpus])
        return requirements.tensor_split(request, [available for available, _ in found])

    async def spoken_for(self, but: str) -> Counter[str]:
        """Bytes of each memory that other workers were promised and do not hold yet.

        To be taken before the memory is read: one that is ready in between counts twice then, and not never.
        """
        promised = [
            (keeper.record.promised(serving=keeper.state.serving), keeper.process.pid if keeper.process else None)
            for keeper in self._wanted(but)
        ]
        return await look(_not_held, promised)

    def _wanted(self, but: str) -> list[Admitted]:
        return [k for k in self._workers.values() if k.record.id != but and not k.record.failed]


def _not_held(promised: list[tuple[Counter[str], int | None]]) -> Counter[str]:
    """What of these promises their processes do not hold of the machine's memory, and all of GPUs'."""
    total: Counter[str] = Counter()
    for left, pid in promised:
        if left[RAM] and pid is not None:
            left[RAM] = max(0, left[RAM] - machine.held_memory(pid))
        total.update(left)
    return total
