"""All workers of the hive: spawn, look, stop, and taking them over when the agent starts."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from llama_orch.base import backoff
from llama_orch.base.tokens import Token
from llama_orch.contract.common import Problem
from llama_orch.contract.errors import ApiError, Conflict, DoesNotFit, NotFound, NotReady
from llama_orch.contract.hive import SpawnRequest, Worker, WorkerStatus
from llama_orch.contract.model_ref import FileRef
from llama_orch.web.tasks import OwnedTasks

from ..devices import engine_build
from ..devices.engine_test import EngineTest
from ..devices.gpus import Gpus
from ..models import memory, reading
from ..models.downloads.download import Download
from ..models.downloads.service import Downloads
from ..models.facts import ModelFacts
from ..ordered_writes import OrderedWrites
from ..problems import Failed
from ..settings import HiveSettings
from . import ending, logs, requirements
from .admission import Admission
from .keeper import WorkerKeeper
from .probe import HttpProbe, Probe
from .processes import HostProcesses, WorkerProcesses
from .records import WorkerRecord, WorkerRecords
from .shared import Shared
from .strays import Strays

log = logging.getLogger(__name__)
FRESH_S = 0.2
PATIENCE_S = 0.5
FAILED_KEPT = 20
LOOK_AFTER_S = 5.0


class Workers:
    """The workers by id. What changes them runs as a task of the agent's own, never of a request's."""

    def __init__(
        self,
        settings: HiveSettings,
        downloads: Downloads,
        gpus: Gpus,
        *,
        engine: EngineTest,
        inference_token: Token,
        probe: Probe | None = None,
        processes: WorkerProcesses | None = None,
        count_restart: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._downloads = downloads
        self._records = WorkerRecords(settings.state_dir)
        self._probe = probe or HttpProbe(settings)
        self._keepers: dict[str, WorkerKeeper] = {}
        self._stopping: dict[str, asyncio.Task[Worker]] = {}
        # Workers that have ended, and whose records cannot be removed yet.
        self._forgetting: set[str] = set()
        self._writes = OrderedWrites()
        self._processes = processes or HostProcesses(settings, self._records, self._writes, inference_token)
        # Spawns under way, by the download that they wait for.
        self._claims: Counter[str] = Counter()
        self._tasks = OwnedTasks()
        self.admission = Admission(settings, gpus, self._keepers)
        self._strays = Strays(settings, self._processes, self._keepers, self._records.left_alone, self._tasks)
        self._shared = Shared(
            settings=settings,
            records=self._records,
            writes=self._writes,
            downloads=downloads,
            probe=self._probe,
            processes=self._processes,
            engine=engine,
            admission=self.admission,
            count_restart=count_restart,
        )

    async def start(self) -> None:
        """Adopt what lives, start what should, end what nobody knows. Raises nothing: the agent must come up."""
        found = await self._processes.find()
        for record in self._records.load():
            self._keepers[record.id] = WorkerKeeper(record, self._shared)
        await self._strays.end(found)
        for keeper in self._keepers.values():
            if keeper.record.stopping:
                self._begin_stop(keeper)
            else:
                keeper.start()
        self._tasks.start(self._look_after(), "look after all workers")

    async def stop(self) -> None:
        """Leave all workers to themselves."""
        await self._tasks.cancel_all(timeout=5)
        await asyncio.gather(*(keeper.leave() for keeper in self._keepers.values()))
        await self._writes.settled(within_s=5)
        await self._probe.close()

    async def all(self) -> list[WorkerKeeper]:
        """Every worker, as it is right now."""
        keepers = list(self._keepers.values())
        asked = [asyncio.create_task(keeper.ask(not_older_than=FRESH_S)) for keeper in keepers]
        if asked:
            # One that hangs is shown as it was last seen; its question ends by itself.
            await asyncio.wait(asked, timeout=PATIENCE_S)
        return keepers

    async def get(self, worker_id: str) -> Worker:
        """One worker. Raises NotFound."""
        keeper = self._keeper(worker_id)
        await keeper.ask(not_older_than=FRESH_S)
        return keeper.view()

    def using(self, model_ref: str, filename: str, path: Path) -> list[str]:
        """The ids of workers that have the model of this name, or of this path by another name."""
        return [
            record.id
            for record in (keeper.record for keeper in self._keepers.values())
            if self._model_path(record) == path
            or (record.request.ref.base == model_ref and record.filename in {filename, None})
        ]

    def _model_path(self, record: WorkerRecord) -> Path | None:
        """Where its model is, or will be when its download has ended."""
        if record.model_path is not None:
            return Path(record.model_path)
        with contextlib.suppress(NotFound):
            return self._downloads.path_of(self._downloads.get(record.download_id or "").record)
        return None

    def of_process(self, pid: int) -> str | None:
        """The id of the worker that this process is, None where it is none of ours."""
        return next((key for key, one in self._keepers.items() if one.process and one.process.pid == pid), None)

    def unconfined(self) -> list[str]:
        """The ids of workers that said of themselves that they are not confined."""
        return sorted(key for key, one in self._keepers.items() if one.process and one.confined is False)

    async def spawn(self, request: SpawnRequest) -> Worker:
        """Start a worker, or answer the one of that name. Raises ApiError where it cannot be."""
        return await self._tasks.finish(self._spawn(request), "spawn")

    async def stop_worker(self, worker_id: str) -> Worker:
        """Drain, stop and forget a worker; answers it as it ended, and all who ask meanwhile alike.

        Raises NotFound; NotReady where that goes on without an answer; ApiError where its process does not end.
        """
        return await self._tasks.outcome(self._begin_stop(self._keeper(worker_id)))

    def _keeper(self, worker_id: str) -> WorkerKeeper:
        if worker_id not in self._keepers:
            raise NotFound(f"there is no worker {worker_id[:64]}; GET /api/v1/workers lists them")
        return self._keepers[worker_id]

    async def _spawn(self, request: SpawnRequest) -> Worker:
        if (existing := await self._existing(request)) is not None:
            return existing
        await self.admission.the_gpus(request)
        if isinstance(request.ref, FileRef):
            worker = await self._spawn_checked(request, Path(request.ref.path), None)
            with contextlib.suppress(ApiError):
                # So that it is listed; one that cannot be read is shown by the failed worker alone.
                await self._downloads.request(request.ref, request.origin)
            return worker
        # Before the download begins: nobody would use a model whose only worker this build cannot run.
        requirements.check_build(request, cuda=engine_build.has_cuda(), splits_rows=await _splits_rows(request))
        try:
            return await self._spawn_downloaded(request)
        except _ModelGone:
            # Deleted between the question and the answer: then it is downloaded anew.
            return await self._spawn_downloaded(request)

    async def _spawn_downloaded(self, request: SpawnRequest) -> Worker:
        download = await self._downloads.request(request.ref, request.origin, for_worker=True)
        try:
            with self._claimed(download):
                return await self._spawn_checked(request, self._downloads.path_of(download.record), download)
        except ApiError:
            await self._release(download.record.download_id)
            raise

    @contextlib.contextmanager
    def _claimed(self, download: Download) -> Iterator[None]:
        """Keep a download going whose worker is not among the workers yet."""
        download_id = download.record.download_id
        self._claims[download_id] += 1
        try:
            yield
        finally:
            self._claims[download_id] -= 1
            if not self._claims[download_id]:
                del self._claims[download_id]

    async def _spawn_checked(self, request: SpawnRequest, path: Path, download: Download | None) -> Worker:
        async with self.admission.lock:
            if (keeper := self._named(request)) is not None:
                return keeper.view()
            broken: Failed | None = None
            facts: ModelFacts | None = None
            splits_rows = await _splits_rows(request)
            record = WorkerRecord(id=uuid.uuid4().hex[:12], request=request, created_at=datetime.now(UTC))
            if download is None or download.ready:
                try:
                    facts = await reading.facts(path, self._settings.state_dir)
                    record.model_path = str(path)
                    record.ctx_per_slot = requirements.context(request.ctx_per_slot, facts)
                except Failed as failed:
                    if failed.problem.code == "model_not_found":
                        if download is not None:
                            raise _ModelGone(f"model_ref: {failed.problem.message}", code="model_not_found") from None
                        raise NotFound(f"model_ref: {failed.problem.message}", code="model_not_found") from None
                    if failed.retry:
                        raise
                    broken = failed
            spoken_for = await self.admission.spoken_for(record.id)
            # Again, and last: a GPU's memory may be taken by programs that are not ours at any moment.
            gpus = await self.admission.the_gpus(request, now=True)
            record.device_uuids = [gpu.uuid for gpu in gpus]
            record.sharing_uuids = [gpu.uuid for gpu in gpus if gpu.shares_memory]
            record.tensor_split = await self.admission.tensor_split(request, gpus, spoken_for)
            if facts is not None and record.ctx_per_slot is not None:
                record.promise(memory.of_worker(facts, request, record.ctx_per_slot, record.tensor_split))
            elif broken is None and download is not None and download.record.model:
                # What its weights alone need; the whole is known when its header is here.
                record.promise(memory.of_weights(download.record.model.size_bytes, request, record.tensor_split))
            record.filename = download.record.filename if download else path.name
            record.download_id = download.record.download_id if download else None
            await self.admission.check_fits(record, gpus, spoken_for)
            # What it needs as a whole is promised: from here on nothing that others take meanwhile fails it.
            record.admitted = facts is not None
            requirements.check_build(request, cuda=engine_build.has_cuda(), splits_rows=splits_rows)
            async with self.admission.giving_port:
                record.port = await self.admission.free_port(record)
                await self._save_new(record)
                keeper = self._keepers[record.id] = WorkerKeeper(record, self._shared)
        await self._forget_failed()
        if broken is not None:
            keeper.fail(broken.problem)
            return keeper.view()
        if download is not None and not download.ready:
            keeper.state.download()
        keeper.start()
        return keeper.view()

    async def _save_new(self, record: WorkerRecord) -> None:
        write = functools.partial(self._records.write, record.id, record.model_dump_json())
        try:
            await self._writes.run(record.id, write)
        except OSError as error:
            log.error("the record of a worker cannot be written: %s", error)  # noqa: TRY400
            raise DoesNotFit(
                "the hive cannot write down what it is to run: see that the disk of state_dir is not full",
                code="state_not_written",
            ) from None

    async def _existing(self, request: SpawnRequest) -> Worker | None:
        """The worker that this request names, started again if it failed. Raises ApiError where it cannot be."""
        keeper = self._named(request)
        if keeper is not None and keeper.state.status is WorkerStatus.FAILED:
            async with self.admission.lock:
                await self.admission.check(keeper.record)
                # It may have been stopped, or started, meanwhile.
                keeper = self._named(request)
                if keeper is not None and keeper.state.status is WorkerStatus.FAILED:
                    keeper.try_again()
                    await keeper.saved()
        return keeper.view() if keeper is not None else None

    def _named(self, request: SpawnRequest) -> WorkerKeeper | None:
        """The worker that this request names. Raises Conflict where it is another one."""
        same_name = (k for k in self._keepers.values() if request.name and k.record.request.name == request.name)
        keeper = next(same_name, None)
        if keeper is None:
            return None
        if keeper.record.stopping:
            raise Conflict(f"the worker {request.name} is being stopped: ask again when it is gone")
        if not keeper.record.same_spec(request):
            raise Conflict(
                f"name: there is a worker {request.name} with another spec; stop it first, or choose another name",
                id=keeper.record.id,
                status=keeper.state.status,
            )
        return keeper

    def _begin_stop(self, keeper: WorkerKeeper) -> asyncio.Task[Worker]:
        worker_id = keeper.record.id
        if worker_id not in self._stopping:
            task = self._stopping[worker_id] = self._tasks.start(self._stop(keeper), f"stop {worker_id}")
            task.add_done_callback(lambda _: self._stopping.pop(worker_id, None))
        return self._stopping[worker_id]

    async def _stop(self, keeper: WorkerKeeper) -> Worker:
        try:
            if keeper.record.id not in self._forgetting:
                await keeper.stop()
        except ending.WillNotEnd:
            log.exception("worker %s", keeper.record.id)
            raise ApiError(
                "the worker's process does not end even by SIGKILL, as the kernel holds it: restart the machine",
                code="process_stuck",
            ) from None
        try:
            await keeper.forget()
        except OSError as error:
            # Until then it counts as one that is being stopped, as the next start of the agent sees it.
            problem = Problem(
                code="state_not_written",
                message=f"the worker has ended, and its record cannot be removed: {error.strerror}",
                what_to_do="see that the disk of state_dir can be written to; the hive goes on trying",
            )
            keeper.record.last_error = problem
            if keeper.record.id not in self._forgetting:
                self._forgetting.add(keeper.record.id)
                self._tasks.start(self._forget_once_it_can(keeper), f"forget {keeper.record.id}")
            raise NotReady(f"{problem.message}: {problem.what_to_do}", code=problem.code) from None
        await self._forgotten(keeper)
        return keeper.view()

    async def _forget_once_it_can(self, keeper: WorkerKeeper) -> None:
        try:
            for attempt in itertools.count(1):
                await asyncio.sleep(backoff.delay(attempt))
                with contextlib.suppress(OSError):
                    await keeper.forget()
                    break
            await self._forgotten(keeper)
        finally:
            self._forgetting.discard(keeper.record.id)

    async def _forgotten(self, keeper: WorkerKeeper) -> None:
        if self._keepers.pop(keeper.record.id, None) is None:
            return
        if keeper.record.download_id is not None:
            await self._release(keeper.record.download_id)
        try:
            await asyncio.to_thread(logs.prune, self._settings.log_dir, set(self._keepers))
        except OSError as error:
            log.warning("old logs of workers cannot be deleted: %s", error.strerror)

    async def _release(self, download_id: str) -> None:
        """End a download that only workers wanted and none does any more."""
        with contextlib.suppress(NotFound):
            record = self._downloads.get(download_id).record
            wanted = self._claims[download_id] or any(
                keeper.record.download_id == download_id for keeper in self._keepers.values()
            )
            if record.for_workers and record.is_open and not wanted:
                await self._downloads.cancel(download_id)

    async def _look_after(self) -> None:
        """See to it all the time that what runs is what should: one process of each worker, logs that end."""
        while True:
            await asyncio.sleep(LOOK_AFTER_S)
            try:
                await self._strays.end(await self._processes.find())
                await asyncio.to_thread(logs.cut, self._settings.log_dir)
            except OSError:
                log.exception("not all workers could be looked after")

    async def _forget_failed(self) -> None:
        """Failed workers that nobody gave a name are kept to be looked at, but not without end."""
        failed = [k for k in self._keepers.values() if k.record.failed and k.record.request.name is None]
        oldest = sorted(failed, key=lambda keeper: keeper.record.created_at)[:-FAILED_KEPT]
        for keeper in oldest:
            with contextlib.suppress(ApiError):
                await self._begin_stop(keeper)


class _ModelGone(NotFound):
    """A model that was there is not any more: it was deleted meanwhile."""


async def _splits_rows(request: SpawnRequest) -> bool:
    """Whether the build can split by rows, for a request that wants it: the whole CUDA library is read for that."""
    return request.split == "row" and await asyncio.to_thread(engine_build.splits_rows)
