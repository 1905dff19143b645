"""Who gets the last gigabytes: `Workers` with GPUs and files as the tests say, and without any process."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llama_orch.base import backoff, processes
from llama_orch.base.tokens import Token
from llama_orch.contract.common import Problem
from llama_orch.contract.devices import Condition, ConditionType, Gpu, GpuStatus, MemoryInfo
from llama_orch.contract.errors import BadRequest, Conflict, DoesNotFit, NotFound, NotReady
from llama_orch.contract.hive import SpawnRequest, Worker, WorkerStatus
from llama_orch.contract.process import WorkerEnded
from llama_orch.hive.devices import engine_build, machine
from llama_orch.hive.devices.gpus import Reading
from llama_orch.hive.models import memory, reading
from llama_orch.hive.models.facts import ModelFacts
from llama_orch.hive.models.memory import Needed
from llama_orch.hive.problems import Failed
from llama_orch.hive.settings import HiveSettings
from llama_orch.hive.workers import ending, logs, requirements
from llama_orch.hive.workers import keeper as worker_keeper
from llama_orch.hive.workers.keeper import WorkerKeeper
from llama_orch.hive.workers.records import WorkerRecords
from llama_orch.hive.workers.service import Workers

GIB = 2**30
CRASHED = Problem(code="crash_loop", message="5 crashes in a row")
HOT = Condition(
    type=ConditionType.OVER_TEMPERATURE, uuid="GPU-0", index=0, message="99 °C", what_to_do="cool it", cordons=True
)
FACTS = ModelFacts("llama", 1, 1, 8192, 1, 1, 1)


class World:
    """What the hive's workers find: memory, GPUs, a model, and what happens while they look.

    The model takes `needed` bytes of each device and, where those are GPUs, `needed_beside` of memory.
    """

    def __init__(self) -> None:
        self.gpus = [a_gpu(0)]
        self.conditions: list[Condition] = []
        self.job: Any = None
        self.ram_bytes = 20 * GIB
        self.needed = 15 * GIB
        self.needed_beside = 0
        self.while_asked: Callable[[], None] = lambda: None
        self.while_reading: Callable[[], None] = lambda: None
        self.workers = cast("Workers", None)

    async def read(self, *, now: bool = False) -> Reading:
        """As `Gpus.read`: the answer is of when it was asked for, and comes later."""
        serving = [keeper.record for keeper in self.keepers() if keeper.state.serving]
        gpus: list[Gpu] = []
        for gpu in self.gpus:
            taken = sum(record.promised()[gpu.uuid] for record in serving)
            gpus.append(gpu.model_copy(update={"memory_free_bytes": (gpu.memory_free_bytes or 0) - taken}))
        await asyncio.sleep(0)
        if now:
            self.while_asked()
        return Reading(status=GpuStatus(available=True), gpus=gpus, conditions=self.conditions)

    def memory(self) -> MemoryInfo:
        """As `devices.memory`."""
        return MemoryInfo(total_bytes=self.ram_bytes, available_bytes=self.ram_bytes)

    def of_worker(self, _: ModelFacts, request: SpawnRequest, *__: object) -> Needed:
        """As `model_memory.of_worker`."""
        of_each = [self.needed] * len(request.all_devices)
        return Needed(of_each, self.needed_beside if request.backend == "cuda" else 0)

    async def facts(self, *_: Path) -> ModelFacts:
        """As `model_reading.facts`."""
        self.while_reading()
        return FACTS

    def keepers(self) -> list[WorkerKeeper]:
        """The workers, as those who keep them."""
        return list(self.workers._keepers.values())

    def serve(self) -> None:
        """Every worker that loads serves from now on."""
        for keeper in self.keepers():
            keeper.state.serve(0)

    async def spawn(self, **fields: object) -> Worker:
        """Ask for a worker on GPU 0."""
        body = {"model_ref": "file:/models/a.gguf", "backend": "cuda", **fields}
        return await self.workers.spawn(SpawnRequest.model_validate(body))


def a_gpu(index: int, **fields: object) -> Gpu:
    return Gpu.model_validate(
        {"index": index, "uuid": f"GPU-{index}", "name": "GPU", "memory_free_bytes": 20 * GIB, **fields}
    )


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()

    async def request(*_: object, **__: object) -> Any:
        return world.job

    downloads = SimpleNamespace(request=request, all=list, path_of=lambda _: Path("/models/a.gguf"))
    settings = HiveSettings(state_dir=tmp_path, log_dir=tmp_path, reserve_gpu_bytes=0, reserve_ram_bytes=0)
    world.workers = Workers(
        settings,
        cast("Any", downloads),
        cast("Any", world),
        engine=cast("Any", None),
        inference_token=Token("inference-token-of-the-tests"),
    )
    monkeypatch.setattr(WorkerKeeper, "start", lambda _: None)
    monkeypatch.setattr(engine_build, "has_cuda", lambda: True)
    monkeypatch.setattr(reading, "facts", world.facts)
    monkeypatch.setattr(memory, "of_worker", world.of_worker)
    monkeypatch.setattr(machine, "memory", world.memory)
    return world


@pytest.mark.parametrize("when", ["while_asked", "while_reading"])
async def test_a_worker_that_is_ready_meanwhile_does_not_free_what_it_took(world: World, when: str):
    await world.spawn(name="first")
    setattr(world, when, world.serve)
    with pytest.raises(DoesNotFit) as error:
        await world.spawn(name="second")
    assert error.value.details["available_bytes"] < world.needed
    assert len(world.keepers()) == 1


async def test_gpus_share_a_model_by_what_is_left_of_them(world: World):
    world.gpus = [a_gpu(0), a_gpu(1)]
    await world.spawn(name="first", device=0)
    world.while_asked = world.serve
    world.needed = 1
    assert (await world.spawn(devices=[0, 1], split_mode="layer")).tensor_split == [0.2, 0.8]


async def test_a_worker_that_turns_out_larger_and_a_new_one_do_not_get_the_same_memory(world: World):
    world.needed = GIB
    await world.spawn(name="first")
    world.needed = 15 * GIB
    (first,) = world.keepers()
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
    world.serve()
    with pytest.raises(DoesNotFit, match="bytes of memory may be used") as error:
        await world.spawn()
    assert error.value.details == {"needed_bytes": 12 * GIB, "available_bytes": 8 * GIB}
    world.needed = 9 * GIB
    with pytest.raises(DoesNotFit):
        await world.spawn(backend="cpu")


async def test_a_gpu_with_something_wrong_since_takes_no_worker_whose_model_came_late(world: World):
    await world.spawn()
    (keeper,) = world.keepers()
    keeper.record.admitted = False
    world.conditions = [HOT]
    with pytest.raises(Conflict, match="GPU 0 takes no new workers: 99 °C") as error:
        await keeper._prepare()
    assert error.value.error_code == "device_cordoned"
    world.conditions, world.gpus = [], []
    with pytest.raises(DoesNotFit) as missing:
        await keeper._prepare()
    assert missing.value.error_code == "gpu_missing"


async def test_a_failed_worker_that_is_named_is_not_started_where_something_is_wrong(world: World):
    await world.spawn(name="first")
    (keeper,) = world.keepers()
    keeper.fail(CRASHED)
    world.conditions = [HOT]
    with pytest.raises(Conflict, match="99 °C"):
        await world.spawn(name="first")
    assert keeper.state.status is WorkerStatus.FAILED
    world.conditions = []
    await world.spawn(name="other")
    with pytest.raises(DoesNotFit):
        await world.spawn(name="first")
    assert keeper.state.status is WorkerStatus.FAILED
    world.gpus = [a_gpu(0, memory_free_bytes=40 * GIB)]
    assert (await world.spawn(name="first")).status is WorkerStatus.LOADING


async def test_a_worker_that_crashed_keeps_its_memory_and_one_that_failed_does_not(world: World):
    await world.spawn(name="first")
    (keeper,) = world.keepers()
    await keeper._prepare()
    keeper.record.restarts = 1
    world.gpus = [a_gpu(0, memory_free_bytes=0)]
    await keeper._prepare()
    keeper.fail(CRASHED)
    keeper.try_again()
    with pytest.raises(DoesNotFit):
        await keeper._prepare()


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


def a_download(*, ready: bool) -> Any:
    record = SimpleNamespace(model=SimpleNamespace(size_bytes=19 * GIB), filename="a.gguf", download_id="d1")
    return SimpleNamespace(ready=ready, record=record)


async def test_a_model_on_its_way_is_promised_what_its_file_takes(world: World):
    world.job = a_download(ready=False)
    await world.spawn(model_ref="hf:a/b")
    world.job = None
    with pytest.raises(DoesNotFit) as error:
        await world.spawn()
    assert error.value.details["available_bytes"] == GIB


async def test_what_was_accepted_is_started_though_others_took_the_memory_meanwhile(world: World):
    await world.spawn()
    (keeper,) = world.keepers()
    world.gpus = [a_gpu(0, memory_free_bytes=0)]
    await keeper._prepare()
    assert keeper.record.port is not None


LACKS = {
    "memory": ({"gpus": [a_gpu(0, memory_free_bytes=GIB)]}, "does_not_fit"),
    "a GPU that is hot": ({"conditions": [HOT]}, "device_cordoned"),
}


@pytest.mark.parametrize(("lack", "code"), LACKS.values(), ids=LACKS)
async def test_a_lack_at_launch_that_may_pass_is_shown_and_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch, lack: dict[str, Any], code: str
):
    await world.spawn()
    (keeper,) = world.keepers()
    # As of one whose model came late: what it needs as a whole was not known when it was accepted.
    keeper.record.admitted = False
    keeper.record.promise(Needed([10 * GIB]))
    well = {name: getattr(world, name) for name in lack}
    tries: list[Any] = []

    def wait(attempt: int) -> float:
        tries.append((attempt, keeper.view().status, keeper.record.last_error, keeper.record.device_memory_bytes))
        vars(world).update(well if attempt == 3 else lack)
        return 0

    monkeypatch.setattr(backoff, "delay", wait)
    vars(world).update(lack)
    await keeper._once_it_can(keeper._prepare)
    assert [(attempt, status, error.code) for attempt, status, error, _ in tries] == [
        (attempt, WorkerStatus.LOADING, code) for attempt in (1, 2, 3)
    ]
    assert [promised for *_, promised in tries] == [[10 * GIB]] * 3, "what was promised stays so, and no more is"
    assert (keeper.record.device_memory_bytes, keeper.record.admitted) == ([15 * GIB], True)


async def test_no_port_at_launch_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch):
    await world.spawn()
    (keeper,) = world.keepers()
    taken, waits = True, 0

    def free_port(*_: object, **__: object) -> int:
        if taken:
            raise NotReady("all ports are in use", code="no_free_port")
        return 8100

    def wait(_: int) -> float:
        nonlocal taken, waits
        taken, waits = False, waits + 1
        return 0

    monkeypatch.setattr(requirements, "free_port", free_port)
    monkeypatch.setattr(backoff, "delay", wait)
    await keeper._once_it_can(keeper._prepare)
    assert (waits, keeper.record.port) == (1, 8100)


async def test_what_is_more_than_the_whole_device_has_is_not_waited_for(world: World):
    await world.spawn()
    (keeper,) = world.keepers()
    keeper.record.admitted = False
    world.gpus, world.needed = [a_gpu(0, memory_total_bytes=24 * GIB)], 25 * GIB
    with pytest.raises(Failed) as failed:
        await keeper._once_it_can(keeper._prepare)
    assert (failed.value.problem.code, failed.value.retry) == ("does_not_fit", False)
    await world.workers.stop_worker(keeper.record.id)
    world.needed = GIB
    await world.spawn(backend="cpu")
    (keeper,) = world.keepers()
    keeper.record.admitted = False
    world.needed = world.ram_bytes + 1
    with pytest.raises(Failed, match="of memory may be used"):
        await keeper._once_it_can(keeper._prepare)


async def test_ports_are_given_to_one_worker_each_however_many_start_together(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    world.needed = 1
    workers = [await world.spawn() for _ in range(5)]
    monkeypatch.setattr(requirements, "_is_free", lambda *_: True)
    for keeper in world.keepers():
        keeper.record.port = None
    await asyncio.gather(*(keeper._prepare() for keeper in world.keepers()))
    assert len({keeper.record.port for keeper in world.keepers()}) == len(workers)


async def test_a_model_that_cannot_be_read_is_a_failed_worker_and_takes_nothing(world: World):
    def damaged() -> None:
        raise Failed("model_unreadable", "the header is damaged")

    world.job, world.while_reading = a_download(ready=True), damaged
    world.gpus = [a_gpu(0, memory_free_bytes=0)]
    worker = await world.spawn(model_ref="hf:a/b")
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
    (keeper,) = world.keepers()
    assert (keeper.view().status, keeper.view().last_error) == (WorkerStatus.DRAINING, keeper.record.last_error)
    with pytest.raises(Conflict, match="is being stopped"):
        await world.spawn(name="chat")
    goes = True
    await asyncio.wait_for(removed.wait(), 10)
    await asyncio.sleep(0.01)
    assert world.keepers() == []
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
    assert world.keepers() == []
    assert not world.workers._records.folder(worker.id).exists()


async def test_logs_that_cannot_be_deleted_are_no_failure_of_a_deletion(world: World, monkeypatch: pytest.MonkeyPatch):
    def prune(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(logs, "prune", prune)
    worker = await world.spawn()
    assert (await world.workers.stop_worker(worker.id)).status is WorkerStatus.STOPPED


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the answers of workers that were stopped had to end."""
    seen: list[float] = []

    async def end(*_: object, drain_s: float, term_s: float) -> None:
        seen.append(drain_s)

    monkeypatch.setattr(ending, "end", end)
    return seen


async def test_a_worker_that_was_ready_is_drained_whether_it_was_asked_yet_or_not(world: World, ended: list[float]):
    for ready in (True, False):
        worker = await world.spawn(name="chat")
        (keeper,) = world.keepers()
        keeper.record.ready_at = keeper.record.created_at if ready else None
        await world.workers.stop_worker(worker.id)
    assert ended == [pytest.approx(30, abs=1), 0]


@pytest.mark.parametrize(("passed", "left"), [(0, 30), (20, 10), (31, 0), (-1e6, 30)])
async def test_a_drain_that_an_earlier_agent_began_gets_what_is_left_of_its_time(
    world: World, ended: list[float], passed: float, left: float
):
    worker = await world.spawn()
    (keeper,) = world.keepers()
    keeper.record.stopping, keeper.record.drain_until_s = True, processes.uptime() + 30 - passed
    await world.workers.stop_worker(worker.id)
    assert ended == [pytest.approx(left, abs=1)]


async def test_a_deletion_that_the_agents_stop_cuts_off_says_so(world: World, monkeypatch: pytest.MonkeyPatch):
    begun = asyncio.Event()

    async def end(*_: object, **__: object) -> None:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(ending, "end", end)
    worker = await world.spawn()
    deleting = [asyncio.create_task(world.workers.stop_worker(worker.id)) for _ in range(3)]
    await begun.wait()
    await world.workers.stop()
    for task in deleting:
        with pytest.raises(NotReady, match="what was taken on is carried on") as error:
            await task
        assert error.value.error_code == "stopping"
    for late in (world.workers.stop_worker(worker.id), world.spawn()):
        with pytest.raises(NotReady, match="is being stopped"):
            await late
    (record,) = WorkerRecords(world.workers._settings.state_dir).load()
    assert record.stopping


@pytest.mark.parametrize("jump_s", [-3600, 3600])
@pytest.mark.parametrize(("served_s", "streak"), [(10, 3), (400, 1)])
async def test_a_clock_that_is_set_neither_makes_nor_hides_a_crash_loop(
    world: World, monkeypatch: pytest.MonkeyPatch, jump_s: int, served_s: float, streak: int
):
    monkeypatch.setattr(backoff, "delay", lambda _: 0)
    await world.spawn()
    (keeper,) = world.keepers()
    now = datetime.now(UTC)
    keeper.record.streak, keeper.record.ready_at, keeper.record.ready_uptime_s = 2, now, 1000.0
    how = WorkerEnded(
        exit_code=1, signal=None, at=now + timedelta(seconds=served_s + jump_s), uptime_s=1000.0 + served_s
    )
    await keeper._after_end(worker_keeper._Ended(how, ""))
    assert keeper.record.streak == streak
    monkeypatch.setattr(processes, "uptime", lambda: 1000.0 + served_s)
    keeper.record.streak = 2
    await keeper._after_end(worker_keeper._Ended(None, ""))
    assert keeper.record.streak == streak


@pytest.mark.parametrize(
    ("model_ref", "path", "taken"),
    [
        ("hf:org/repo", "/models/models--org--repo/snapshots/c/m.gguf", True),
        ("hf:org/repo", "/models/../etc/m.gguf", False),
        ("hf:org/repo", "/etc/m.gguf", False),
        ("file:/home/m.gguf", "/home/m.gguf", True),
        ("file:/home/m.gguf", "/etc/m.gguf", False),
    ],
)
async def test_a_record_names_no_model_but_the_one_that_was_asked_for(
    world: World, model_ref: str, path: str, taken: bool
):
    await world.spawn(name="one")
    (keeper,) = world.keepers()
    keeper._around.settings = keeper._around.settings.model_copy(update={"models_dir": Path("/models")})
    keeper.record.request = keeper.record.request.model_copy(update={"model_ref": model_ref})
    keeper.record.model_path = path
    assert keeper._path_of_record() == (Path(path) if taken else None)
