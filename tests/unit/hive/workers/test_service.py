"""Who gets the last gigabytes: `Workers` with GPUs and files as the tests say, and processes that are numbers."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llama_orch.base import backoff, processes
from llama_orch.base.tokens import Token
from llama_orch.contract.devices import Condition, ConditionType, Gpu, GpuStatus, MemoryInfo
from llama_orch.contract.errors import BadRequest, Conflict, DoesNotFit, NotFound, NotReady
from llama_orch.contract.hive import SpawnRequest, Worker, WorkerStatus
from llama_orch.contract.process import WorkerEnded
from llama_orch.hive.devices import engine_build, machine
from llama_orch.hive.devices.engine_test import EngineTest
from llama_orch.hive.devices.gpus import Reading
from llama_orch.hive.models import memory, reading
from llama_orch.hive.models.downloads.service import Downloads
from llama_orch.hive.models.facts import ModelFacts
from llama_orch.hive.models.memory import Needed
from llama_orch.hive.problems import Failed
from llama_orch.hive.settings import HiveSettings
from llama_orch.hive.workers import keeper, logs, requirements
from llama_orch.hive.workers.keeper import WorkerKeeper
from llama_orch.hive.workers.records import WorkerRecords
from llama_orch.hive.workers.service import Workers
from tests.support.memory_hive import MemoryProbe, MemoryProcesses, MemorySource, ended

GIB = 2**30
HOT = Condition(
    type=ConditionType.OVER_TEMPERATURE, uuid="GPU-0", index=0, message="99 °C", what_to_do="cool it", cordons=True
)
FACTS = ModelFacts("llama", 1, 1, 8192, 1, 1, 1)


class World:
    """What the hive's workers find: memory, GPUs, a model, and what happens while they look.

    The model takes `needed` bytes of each device and, where those are GPUs, `needed_beside` of memory. `hf:a/b` is a
    model that the hub has, and that comes when it is let.
    """

    def __init__(self, folder: Path) -> None:
        self.gpus = [a_gpu(0)]
        self.conditions: list[Condition] = []
        self.ram_bytes = 20 * GIB
        self.needed = 15 * GIB
        self.needed_beside = 0
        self.while_asked: Callable[[], Awaitable[None]] = nothing
        self.while_reading: Callable[[], Awaitable[None]] = nothing
        self.state_dir = folder / "state"
        settings = HiveSettings(
            state_dir=self.state_dir,
            models_dir=folder / "models",
            log_dir=folder,
            reserve_gpu_bytes=0,
            reserve_ram_bytes=0,
            reserve_disk_bytes=1,
        )
        (folder / "models").mkdir(exist_ok=True)
        self.hub = MemorySource(size=1000)
        self.processes = MemoryProcesses()
        self.probe = MemoryProbe(self.processes)
        self.downloads = Downloads(settings, self.hub)
        self.workers = Workers(
            settings,
            self.downloads,
            cast("Any", self),
            engine=EngineTest(folder, confined=True),
            inference_token=Token("inference-token-of-the-tests"),
            probe=self.probe,
            processes=self.processes,
        )

    async def read(self, *, now: bool = False) -> Reading:
        """As `Gpus.read`: the answer is of when it was asked for, and comes later."""
        serving = [keeper.record for keeper in await self.workers.all() if keeper.state.serving]
        gpus: list[Gpu] = []
        for gpu in self.gpus:
            taken = sum(record.promised()[gpu.uuid] for record in serving)
            gpus.append(gpu.model_copy(update={"memory_free_bytes": (gpu.memory_free_bytes or 0) - taken}))
        await asyncio.sleep(0)
        if now:
            await self.while_asked()
        return Reading(status=GpuStatus(available=True), gpus=gpus, conditions=self.conditions)

    def memory(self) -> MemoryInfo:
        """As `machine.memory`."""
        return MemoryInfo(total_bytes=self.ram_bytes, available_bytes=self.ram_bytes)

    def disk(self, _: Path) -> MemoryInfo:
        """As `machine.disk`."""
        return MemoryInfo(total_bytes=100 * GIB, available_bytes=100 * GIB)

    def of_worker(self, _: ModelFacts, request: SpawnRequest, *__: object) -> Needed:
        """As `memory.of_worker`."""
        of_each = [self.needed] * len(request.all_devices)
        return Needed(of_each, self.needed_beside if request.backend == "cuda" else 0)

    async def facts(self, *_: Path) -> ModelFacts:
        """As `reading.facts`."""
        await self.while_reading()
        return FACTS

    async def spawn(self, **fields: object) -> Worker:
        """Ask for a worker on GPU 0."""
        body = {"model_ref": "file:/models/a.gguf", "backend": "cuda", **fields}
        return await self.workers.spawn(SpawnRequest.model_validate(body))

    async def keeper(self, worker_id: str) -> WorkerKeeper:
        """The worker with that id, as the hive keeps it."""
        (found,) = [keeper for keeper in await self.workers.all() if keeper.record.id == worker_id]
        return found

    async def becomes(self, worker: Worker, is_so: Callable[[WorkerKeeper], bool]) -> WorkerKeeper:
        """Wait until something is true of a worker."""
        async with asyncio.timeout(10):
            while not is_so(kept := await self.keeper(worker.id)):  # noqa: ASYNC110  no event tells of it
                await asyncio.sleep(0.001)
            return kept

    async def launched(self, worker: Worker, times: int = 1) -> WorkerKeeper:
        """Wait until its process was started so often."""
        return await self.becomes(
            worker,
            lambda keeper: self.processes.started.count(worker.id) == times and keeper.process is not None,
        )

    async def serve(self) -> None:
        """Every worker that there is serves from now on."""
        for kept in await self.workers.all():
            await self.launched(kept.view())
            self.probe.ready.add(kept.record.id)
            await self.becomes(kept.view(), lambda one: one.state.serving)


async def nothing() -> None:
    """Nothing happens meanwhile."""


def a_gpu(index: int, **fields: object) -> Gpu:
    return Gpu.model_validate(
        {"index": index, "uuid": f"GPU-{index}", "name": "GPU", "memory_free_bytes": 20 * GIB, **fields}
    )


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    world = World(tmp_path)
    monkeypatch.setattr(keeper, "LOOK_S", 0.001)
    monkeypatch.setattr(keeper, "ASK_S", 0.001)
    monkeypatch.setattr(engine_build, "has_cuda", lambda: True)
    monkeypatch.setattr(reading, "facts", world.facts)
    monkeypatch.setattr(memory, "of_worker", world.of_worker)
    monkeypatch.setattr(machine, "memory", world.memory)
    monkeypatch.setattr(machine, "disk", world.disk)
    yield world
    world.processes.held.set()
    await world.workers.stop()
    await world.downloads.stop()


@pytest.mark.parametrize("when", ["while_asked", "while_reading"])
async def test_a_worker_that_is_ready_meanwhile_does_not_free_what_it_took(world: World, when: str):
    await world.spawn(name="first")
    setattr(world, when, world.serve)
    with pytest.raises(DoesNotFit) as error:
        await world.spawn(name="second")
    assert error.value.details["available_bytes"] < world.needed
    assert len(await world.workers.all()) == 1


async def test_gpus_share_a_model_by_what_is_left_of_them(world: World):
    world.gpus = [a_gpu(0), a_gpu(1)]
    await world.spawn(name="first", device=0)
    world.while_asked = world.serve
    world.needed = 1
    assert (await world.spawn(devices=[0, 1], split_mode="layer")).tensor_split == [0.2, 0.8]


async def test_a_worker_that_turns_out_larger_and_a_new_one_do_not_get_the_same_memory(world: World):
    world.needed = GIB
    first = await world.launched(await world.spawn(name="first"))
    world.needed = 15 * GIB
    results = await asyncio.gather(
        world.workers.admission.take_on(first.record, Needed([world.needed])),
        world.spawn(name="second"),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [type(None), DoesNotFit]


@pytest.mark.parametrize("backends", [("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")])
async def test_gpus_without_memory_of_their_own_and_the_cpu_share_the_machines(world: World, backends: tuple[str, str]):
    world.gpus = [a_gpu(0, shares_memory=True, memory_free_bytes=None)]
    await world.spawn(backend=backends[0])
    with pytest.raises(DoesNotFit) as error:
        await world.spawn(backend=backends[1])
    assert error.value.details == {"needed_bytes": 15 * GIB, "available_bytes": 5 * GIB}


async def test_parts_on_gpus_without_memory_of_their_own_are_added_up(world: World):
    world.gpus = [a_gpu(index, shares_memory=True, memory_free_bytes=None) for index in (0, 1)]
    with pytest.raises(DoesNotFit, match="bytes of memory may be used") as error:
        await world.spawn(devices=[0, 1])
    assert error.value.details == {"needed_bytes": 30 * GIB, "available_bytes": 20 * GIB}


async def test_what_a_worker_on_a_gpu_needs_of_memory_is_promised_too(world: World):
    world.needed, world.needed_beside = GIB, 12 * GIB
    await world.spawn()
    await world.serve()
    with pytest.raises(DoesNotFit, match="bytes of memory may be used") as error:
        await world.spawn()
    assert error.value.details == {"needed_bytes": 12 * GIB, "available_bytes": 8 * GIB}
    world.needed = 9 * GIB
    with pytest.raises(DoesNotFit):
        await world.spawn(backend="cpu")


async def test_a_gpu_with_something_wrong_since_takes_no_worker_whose_model_came_late(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(backoff, "delay", lambda _: 0.001)
    worker = await world.spawn(model_ref="hf:a/b")
    world.conditions = [HOT]
    world.hub.arrives.set()
    kept = await world.becomes(worker, lambda kept: kept.record.last_error is not None)
    assert kept.record.last_error is not None and kept.record.last_error.code == "device_cordoned"
    assert "GPU 0 takes no new workers: 99 °C" in kept.record.last_error.message
    world.conditions, world.gpus = [], []
    await world.becomes(worker, lambda kept: kept.record.failed)
    assert kept.view().status is WorkerStatus.FAILED
    assert kept.record.last_error.code == "gpu_missing"
    assert world.processes.started == []


async def failed(world: World, **fields: object) -> WorkerKeeper:
    """A worker that cannot be started."""
    world.processes.refused = Failed("cannot_start", "the interpreter is gone")
    kept = await world.becomes(await world.spawn(**fields), lambda kept: kept.record.failed)
    world.processes.refused = None
    return kept


async def test_a_failed_worker_that_is_named_is_not_started_where_something_is_wrong(world: World):
    kept = await failed(world, name="first")
    world.conditions = [HOT]
    with pytest.raises(Conflict, match="99 °C"):
        await world.spawn(name="first")
    assert kept.state.status is WorkerStatus.FAILED
    world.conditions = []
    await world.spawn(name="other")
    with pytest.raises(DoesNotFit):
        await world.spawn(name="first")
    assert kept.state.status is WorkerStatus.FAILED
    world.gpus = [a_gpu(0, memory_free_bytes=40 * GIB)]
    assert (await world.spawn(name="first")).status is WorkerStatus.LOADING


async def test_a_worker_that_crashed_keeps_its_memory_and_one_that_failed_does_not(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(backoff, "delay", lambda _: 0)
    worker = await world.spawn(name="first")
    await world.launched(worker)
    world.gpus = [a_gpu(0, memory_free_bytes=0)]
    world.processes.exit(worker.id, ended(signal=9))
    kept = await world.launched(worker, 2)
    assert kept.record.restarts == 1
    world.processes.refused = Failed("cannot_start", "the interpreter is gone")
    world.processes.exit(worker.id, ended(signal=9))
    await world.becomes(worker, lambda kept: kept.record.failed)
    with pytest.raises(DoesNotFit):
        await world.spawn(name="first")


async def test_a_worker_whose_disk_is_full_starts_when_there_is_room(world: World, monkeypatch: pytest.MonkeyPatch):
    shown: list[str] = []

    def wait(_: int) -> float:
        shown.append("waited")
        if len(shown) == 3:
            world.processes.refused = None
        return 0

    monkeypatch.setattr(backoff, "delay", wait)
    world.processes.refused = Failed("cannot_start", "No space left on device", retry=True)
    kept = await world.launched(await world.spawn())
    assert len(shown) == 3
    assert kept.record.last_error is not None and kept.record.last_error.code == "cannot_start"
    assert not kept.record.failed


async def test_only_a_split_by_rows_reads_the_cuda_library_and_not_on_the_loop(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    read_by: list[threading.Thread] = []

    def splits_rows() -> bool:
        read_by.append(threading.current_thread())
        return False

    monkeypatch.setattr(engine_build, "splits_rows", splits_rows)
    world.gpus = [a_gpu(0), a_gpu(1)]
    world.needed = GIB
    for fields in ({"backend": "cpu"}, {}, {"devices": [0, 1]}):
        await world.spawn(**fields)
    assert read_by == []
    with pytest.raises(BadRequest, match="split_mode"):
        await world.spawn(devices=[0, 1], split_mode="row")
    assert read_by and threading.main_thread() not in read_by


async def test_what_the_hardware_says_comes_before_what_the_build_can_do(world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_build, "has_cuda", lambda: False)
    world.needed = 21 * GIB
    with pytest.raises(DoesNotFit):
        await world.spawn()
    world.needed = GIB
    with pytest.raises(BadRequest, match="built without CUDA"):
        await world.spawn()


async def test_a_model_on_its_way_is_promised_what_its_file_takes(world: World):
    world.hub.size = 19 * GIB
    await world.spawn(model_ref="hf:a/b")
    with pytest.raises(DoesNotFit) as error:
        await world.spawn()
    assert error.value.details["available_bytes"] == GIB


async def test_what_was_accepted_is_started_though_others_took_the_memory_meanwhile(world: World):
    worker = await world.spawn()
    world.gpus = [a_gpu(0, memory_free_bytes=0)]
    kept = await world.launched(worker)
    assert kept.record.port is not None


LACKS = {
    "memory": ({"gpus": [a_gpu(0, memory_free_bytes=GIB)]}, "does_not_fit"),
    "a GPU that is hot": ({"conditions": [HOT]}, "device_cordoned"),
}


@pytest.mark.parametrize(("lack", "code"), LACKS.values(), ids=LACKS)
async def test_a_lack_at_launch_that_may_pass_is_shown_and_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch, lack: dict[str, Any], code: str
):
    # What one whose model comes late needs as a whole is not known when it is accepted.
    world.hub.size = 10 * GIB
    kept = await world.keeper((await world.spawn(model_ref="hf:a/b")).id)
    well = {name: getattr(world, name) for name in lack}
    tries: list[Any] = []

    def wait(attempt: int) -> float:
        tries.append((attempt, kept.view().status, kept.record.last_error, kept.record.device_memory_bytes))
        vars(world).update(well if attempt == 3 else lack)
        return 0

    monkeypatch.setattr(backoff, "delay", wait)
    vars(world).update(lack)
    world.hub.arrives.set()
    await world.launched(kept.view())
    assert [(attempt, status, error.code) for attempt, status, error, _ in tries] == [
        (attempt, WorkerStatus.LOADING, code) for attempt in (1, 2, 3)
    ]
    assert [promised for *_, promised in tries] == [[10 * GIB]] * 3, "what was promised stays so, and no more is"
    assert (kept.record.device_memory_bytes, kept.record.admitted) == ([15 * GIB], True)


async def test_no_port_at_launch_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch):
    taken, waits, asked = True, 0, 0

    def free_port(*_: object, **__: object) -> int:
        nonlocal asked
        asked += 1
        # The first question is that of the spawn.
        if taken and asked > 1:
            raise NotReady("all ports are in use", code="no_free_port")
        return 8100

    def wait(_: int) -> float:
        nonlocal taken, waits
        taken, waits = False, waits + 1
        return 0

    monkeypatch.setattr(requirements, "free_port", free_port)
    monkeypatch.setattr(backoff, "delay", wait)
    kept = await world.launched(await world.spawn())
    assert (waits, kept.record.port) == (1, 8100)


async def test_what_is_more_than_the_whole_device_has_is_not_waited_for(world: World):
    worker = await world.spawn(model_ref="hf:a/b")
    world.gpus, world.needed = [a_gpu(0, memory_total_bytes=24 * GIB)], 25 * GIB
    world.hub.arrives.set()
    kept = await world.becomes(worker, lambda kept: kept.record.failed)
    assert kept.record.last_error is not None and kept.record.last_error.code == "does_not_fit"
    world.hub.arrives.clear()
    worker = await world.spawn(backend="cpu", model_ref="hf:c/d")
    world.needed = world.ram_bytes + 1
    world.hub.arrives.set()
    kept = await world.becomes(worker, lambda kept: kept.record.failed)
    assert kept.record.last_error is not None and "of memory may be used" in kept.record.last_error.message


async def test_ports_are_given_to_one_worker_each_however_many_start_together(world: World):
    world.needed = 1
    names = [f"worker{number}" for number in range(5)]
    for name in names:
        kept = await failed(world, name=name)
        assert kept.record.port is None
    workers = await asyncio.gather(*(world.spawn(name=name) for name in names))
    kept = [await world.launched(worker) for worker in workers]
    assert len({one.record.port for one in kept}) == len(workers)


async def test_a_model_that_cannot_be_read_is_a_failed_worker_and_takes_nothing(world: World):
    async def damaged() -> None:
        raise Failed("model_unreadable", "the header is damaged")

    world.while_reading = damaged
    world.gpus = [a_gpu(0, memory_free_bytes=0)]
    worker = await world.spawn()
    assert (worker.status, worker.memory_estimated_bytes) == (WorkerStatus.FAILED, None)


async def test_a_record_that_cannot_be_removed_is_tried_again_and_keeps_its_name_until_then(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    worker = await world.spawn(name="chat")
    removed, goes = asyncio.Event(), False

    def remove(_: object, worker_id: str) -> None:
        assert worker_id == worker.id
        if not goes:
            raise OSError(errno.EROFS, "Read-only file system")
        removed.set()

    monkeypatch.setattr(WorkerRecords, "remove", remove)
    monkeypatch.setattr(backoff, "delay", lambda _: 0.001)
    for _ in range(2):
        with pytest.raises(NotReady, match=r"cannot be removed: Read-only file system.*goes on trying"):
            await world.workers.stop_worker(worker.id)
    kept = await world.keeper(worker.id)
    assert (kept.view().status, kept.view().last_error) == (WorkerStatus.DRAINING, kept.record.last_error)
    with pytest.raises(Conflict, match="is being stopped"):
        await world.spawn(name="chat")
    goes = True
    await asyncio.wait_for(removed.wait(), 10)
    await asyncio.sleep(0.01)
    assert await world.workers.all() == []
    await world.spawn(name="chat")


async def test_parallel_deletions_answer_the_same(world: World):
    worker = await world.spawn(name="chat")
    answers = await asyncio.gather(*(world.workers.stop_worker(worker.id) for _ in range(10)))
    assert [answer.status for answer in answers] == [WorkerStatus.STOPPED] * 10
    with pytest.raises(NotFound):
        await world.workers.stop_worker(worker.id)


async def test_a_deletion_while_an_earlier_ones_forgetting_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    worker = await world.spawn(name="chat")
    retries: list[int] = []
    waiting, goes_on = asyncio.Event(), asyncio.Event()
    really, broken = WorkerRecords.remove, True

    def remove(records: WorkerRecords, worker_id: str) -> None:
        if broken:
            raise OSError(errno.EROFS, "Read-only file system")
        really(records, worker_id)

    async def sleep(attempt: int) -> None:
        retries.append(attempt)
        waiting.set()
        await goes_on.wait()

    monkeypatch.setattr(WorkerRecords, "remove", remove)
    monkeypatch.setattr(backoff, "delay", lambda attempt: attempt)
    monkeypatch.setattr("llama_orch.hive.workers.service.asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": sleep}))
    answers = await asyncio.gather(*(world.workers.stop_worker(worker.id) for _ in range(5)), return_exceptions=True)
    assert [getattr(answer, "error_code", answer) for answer in answers] == ["state_not_written"] * 5
    await waiting.wait()
    with pytest.raises(NotReady, match="goes on trying"):
        await world.workers.stop_worker(worker.id)
    assert retries == [1], "one task tries again, however many asked"
    broken = False
    # The disk is well: who asks now need not wait for the next try, and that one then finds nothing to do.
    assert (await world.workers.stop_worker(worker.id)).status is WorkerStatus.STOPPED
    goes_on.set()
    await asyncio.sleep(0)
    assert await world.workers.all() == []
    assert not WorkerRecords(world.state_dir).folder(worker.id).exists()


async def test_logs_that_cannot_be_deleted_are_no_failure_of_a_deletion(world: World, monkeypatch: pytest.MonkeyPatch):
    def prune(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(logs, "prune", prune)
    worker = await world.spawn()
    assert (await world.workers.stop_worker(worker.id)).status is WorkerStatus.STOPPED


async def test_a_worker_that_was_ready_is_drained_whether_it_was_asked_yet_or_not(world: World):
    for ready in (True, False):
        worker = await world.spawn(name="chat")
        kept = await world.launched(worker)
        kept.record.ready_at = kept.record.created_at if ready else None
        await world.workers.stop_worker(worker.id)
    assert world.processes.drains[:1] + world.processes.drains[-1:] == [pytest.approx(30, abs=1), 0]


@pytest.mark.parametrize(("passed", "left"), [(0, 30), (20, 10), (31, 0), (-1e6, 30)])
async def test_a_drain_that_an_earlier_agent_began_gets_what_is_left_of_its_time(
    world: World, passed: float, left: float
):
    worker = await world.spawn()
    kept = await world.launched(worker)
    kept.record.stopping, kept.record.drain_until_s = True, processes.uptime() + 30 - passed
    await world.workers.stop_worker(worker.id)
    assert world.processes.drains == [pytest.approx(left, abs=1)]


async def test_a_deletion_that_the_agents_stop_cuts_off_says_so(world: World):
    worker = await world.spawn()
    await world.launched(worker)
    world.processes.held.clear()
    deleting = [asyncio.create_task(world.workers.stop_worker(worker.id)) for _ in range(3)]
    await world.processes.ending.wait()
    await world.workers.stop()
    for task in deleting:
        with pytest.raises(NotReady, match="what was taken on is carried on") as error:
            await task
        assert error.value.error_code == "stopping"
    for late in (world.workers.stop_worker(worker.id), world.spawn()):
        with pytest.raises(NotReady, match="is being stopped"):
            await late
    (record,) = WorkerRecords(world.state_dir).load()
    assert record.stopping


@pytest.mark.parametrize("jump_s", [-3600, 3600])
@pytest.mark.parametrize(("served_s", "streak"), [(10, 3), (400, 1)])
async def test_a_clock_that_is_set_neither_makes_nor_hides_a_crash_loop(
    world: World, monkeypatch: pytest.MonkeyPatch, jump_s: int, served_s: float, streak: int
):
    monkeypatch.setattr(backoff, "delay", lambda _: 0)
    worker = await world.spawn()
    began = processes.uptime()
    for number, seen in enumerate((True, False), 1):
        kept = await world.launched(worker, number)
        kept.record.streak, kept.record.ready_at, kept.record.ready_uptime_s = 2, datetime.now(UTC), began
        now = datetime.now(UTC) + timedelta(seconds=served_s + jump_s)
        how = WorkerEnded(exit_code=1, signal=None, at=now, uptime_s=began + served_s)
        monkeypatch.setattr(processes, "uptime", lambda: began + served_s)
        world.processes.exit(worker.id, how if seen else None)
        await world.launched(worker, number + 1)
        assert kept.record.streak == streak
