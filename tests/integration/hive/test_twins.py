"""What the hive counts on in processes of workers, their answers and the hub: the real ones and their twins alike."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from llama_orch.base.tokens import Token
from llama_orch.contract.hive import SpawnRequest
from llama_orch.contract.inference import WorkerHealth
from llama_orch.contract.model_ref import HubRef
from llama_orch.demo_model import write_demo_model
from llama_orch.hive.models.downloads.lines import Progress
from llama_orch.hive.models.downloads.source import HubSource, Source
from llama_orch.hive.ordered_writes import OrderedWrites
from llama_orch.hive.problems import Failed
from llama_orch.hive.settings import HiveSettings
from llama_orch.hive.workers.probe import HttpProbe, Probe
from llama_orch.hive.workers.process_table import Process
from llama_orch.hive.workers.processes import HostProcesses, WorkerProcesses
from llama_orch.hive.workers.records import WorkerRecord, WorkerRecords
from tests.support.hives import until
from tests.support.hub.server import Hub
from tests.support.memory_hive import MemoryProbe, MemoryProcesses, MemorySource
from tests.support.ports import free_port

REPO, NAME, CONTENT = "bees/demo", "m.gguf", b"GGUF!"


@dataclass
class World:
    """Processes and probe that belong together, and one worker's record."""

    processes: WorkerProcesses
    probe: Probe
    record: WorkerRecord
    model: Path
    ready: Callable[[], object]

    async def start(self) -> Process:
        process = await self.processes.start(self.record, self.model, None)
        assert process is not None
        return process

    async def health(self) -> WorkerHealth | None:
        return await self.probe.health(self.record.id, self.record.port or 0)

    async def idle(self) -> None:
        """Wait until it serves: one that is signalled while Python starts dies of the signal."""
        self.ready()

        async def is_idle() -> bool:
            health = await self.health()
            return health is not None and health.status == "idle"

        await until(is_idle, "it is not ready")


@pytest.fixture(params=["real", "twin"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    model = write_demo_model(tmp_path / "demo.gguf")
    record = WorkerRecord(
        id="one",
        request=SpawnRequest(model_ref=f"file:{model}", backend="cpu"),
        created_at=datetime.now(UTC),
        port=free_port(),
        ctx_per_slot=512,
        threads=1,
    )
    if request.param == "twin":
        twin = MemoryProcesses()
        probe = MemoryProbe(twin)
        found = World(twin, probe, record, model, lambda: probe.ready.add(record.id))
    else:
        settings = HiveSettings(state_dir=tmp_path / "state", log_dir=tmp_path, host="127.0.0.1")
        records = WorkerRecords(settings.state_dir)
        records.save(record)
        processes = HostProcesses(settings, records, OrderedWrites(), Token("inference-token-of-the-tests"))
        found = World(processes, HttpProbe(settings), record, model, lambda: None)
    await found.probe.load()
    yield found
    await found.processes.end(record.id, drain_s=0, term_s=10)
    await found.probe.close()


async def test_a_process_is_found_until_it_ended(world: World):
    processes, worker = world.processes, world.record.id
    assert await processes.find() == {}
    assert await processes.recorded(worker) is None
    process = await world.start()
    assert process in (await processes.find())[worker]
    assert await processes.recorded(worker) == await processes.left_over(worker) == process
    assert await processes.lives(process) and await processes.progress(process) is not None
    await world.idle()
    await processes.end(worker, drain_s=0, term_s=20)
    assert not await processes.lives(process)
    assert await processes.progress(process) is None
    assert await processes.find() == {}
    how = await processes.how_it_ended(worker)
    assert how is not None and (how.exit_code, how.signal) == (0, None)
    await processes.end(worker, drain_s=0, term_s=20)


async def test_one_that_was_killed_tells_its_signal_and_another_may_follow(world: World):
    process = await world.start()
    await world.processes.kill(process)

    async def gone() -> bool:
        return await world.processes.find() == {}

    await until(gone, "it is still there")
    how = await world.processes.how_it_ended(world.record.id)
    assert how is not None and (how.exit_code, how.signal) == (None, signal.SIGKILL)
    left = await world.processes.left_over(world.record.id)
    assert left == process and not await world.processes.lives(process)
    again = await world.start()
    assert again != process and await world.processes.lives(again)


async def test_a_worker_answers_under_its_own_id_once_it_runs(world: World):
    assert await world.health() is None
    await world.start()
    await world.idle()
    assert await world.probe.health("another", world.record.port or 0) is None
    await world.processes.end(world.record.id, drain_s=0, term_s=20)
    assert await world.health() is None


@pytest.fixture(params=["real", "twin"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Source]:
    """A hub with one model of one repository."""
    if request.param == "twin":
        twin = MemorySource(size=len(CONTENT), filename=NAME)
        twin.unknown = {"bees/none"}
        twin.arrives.set()
        yield twin
        return
    with Hub() as hub:
        hub.add_repo(REPO, {NAME: CONTENT})
        settings = HiveSettings(state_dir=tmp_path / "state", models_dir=tmp_path / "models", hub_endpoint=hub.url)
        yield HubSource(settings, None)


async def test_a_source_says_what_a_reference_means_and_brings_it(source: Source):
    model = await source.resolve(HubRef(REPO, None, None))
    assert (model.repo, model.revision, model.filename, model.size_bytes) == (REPO, "main", NAME, len(CONTENT))
    seen: list[Progress] = []
    await source.fetch(model, seen.append)
    assert max(one.done for one in seen if one.event == "downloading") == len(CONTENT)


async def test_a_source_says_why_it_does_not_have_a_model(source: Source):
    with pytest.raises(Failed) as failed:
        await source.resolve(HubRef("bees/none", None, None))
    assert (failed.value.error_code, failed.value.status, failed.value.retry) == ("model_not_found", 404, False)
