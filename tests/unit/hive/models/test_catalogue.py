"""The deletion of a model and the start of a worker of it: one after the other, and never a worker without its file."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytest

from llama_orch.base.tokens import Token
from llama_orch.contract import model_ref as refs
from llama_orch.contract.errors import Conflict, NotFound
from llama_orch.contract.hive import SpawnRequest, Worker, WorkerStatus
from llama_orch.demo_model import write_demo_model
from llama_orch.hive.devices.engine_test import EngineTest
from llama_orch.hive.devices.gpus import Gpus
from llama_orch.hive.models import cache as model_cache
from llama_orch.hive.models.catalogue import Models
from llama_orch.hive.models.downloads import service
from llama_orch.hive.models.downloads.service import Downloads
from llama_orch.hive.settings import HiveSettings
from llama_orch.hive.workers import keeper
from llama_orch.hive.workers.service import Workers
from tests.support.memory_hive import MemoryProbe, MemoryProcesses, MemorySource
from tests.unit.hive.models.test_cache import add

T = TypeVar("T")
REF, NAME = "hf:org/repo", "m.gguf"


class WatchedLock(asyncio.Lock):
    """Tells how often it was asked for, so that a test knows who waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    async def acquire(self) -> Literal[True]:
        self.asked += 1
        return await super().acquire()

    async def holds_up(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start work that has to wait for this lock, and return when it does."""
        before, task = self.asked, asyncio.create_task(work)
        async with asyncio.timeout(30):
            while self.asked == before:  # noqa: ASYNC110  no event tells of it
                await asyncio.sleep(0.001)
        return task


class World:
    """A hive with one model in its cache, whose workers have no processes."""

    def __init__(self, folder: Path) -> None:
        self.cache = folder / "models"
        settings = HiveSettings(
            state_dir=folder / "state", models_dir=self.cache, log_dir=folder, reserve_ram_bytes=0, reserve_disk_bytes=1
        )
        self.hub = MemorySource(filename=NAME)
        self.hub.commit = "d" * 40
        self.downloads = Downloads(settings, self.hub)
        processes = MemoryProcesses()
        self.workers = Workers(
            settings,
            self.downloads,
            Gpus(),
            engine=EngineTest(folder, confined=True),
            inference_token=Token("t" * 16),
            probe=MemoryProbe(processes),
            processes=processes,
        )
        self.lock = self.workers.admission.lock = WatchedLock()
        self.beginning = self.downloads.beginning = WatchedLock()
        self.models = Models(self.cache, self.downloads, self.workers.using, self.lock)
        self.path = add(self.cache, "c" * 40, NAME, "8" * 64)
        write_demo_model(self.path.resolve())

    async def spawn(self, model_ref: str = REF) -> Worker:
        return await self.workers.spawn(SpawnRequest(model_ref=model_ref, backend="cpu"))


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(keeper, "LOOK_S", 0.001)
    world = World(tmp_path)
    yield world
    await world.workers.stop()
    await world.downloads.stop()


class Removal:
    """Holds the removal of a model's files up, in its thread, until the test lets it go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began, self.goes_on = threading.Event(), threading.Event()
        really = model_cache.remove

        def remove(cache: Path, model: model_cache.CachedModel) -> None:
            self.began.set()
            assert self.goes_on.wait(30)
            really(cache, model)

        monkeypatch.setattr(model_cache, "remove", remove)


@pytest.mark.parametrize("asked_before", [True, False])
async def test_a_spawn_during_a_deletion_waits_and_downloads_the_model_anew(
    world: World, monkeypatch: pytest.MonkeyPatch, asked_before: bool
):
    if asked_before:
        # So that it is known as a download that is ready.
        await world.downloads.request(refs.parse(REF), "rest")
    removal = Removal(monkeypatch)
    deleting = asyncio.create_task(world.models.delete(REF, None))
    await asyncio.to_thread(removal.began.wait, 30)
    spawning = await world.beginning.holds_up(world.spawn())
    assert not spawning.done()
    removal.goes_on.set()
    assert (await deleting).filename == NAME
    worker = await spawning
    assert worker.status is WorkerStatus.DOWNLOADING
    assert not world.path.exists()


async def test_a_model_that_goes_between_the_question_and_the_admission_is_downloaded_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    async with world.lock:
        spawning = await world.lock.holds_up(world.spawn())
        world.path.resolve().unlink()
        world.path.unlink()
    assert (await spawning).status is WorkerStatus.DOWNLOADING


async def test_a_spawn_of_a_users_file_that_is_deleted_is_refused(world: World, tmp_path: Path):
    async with world.lock:
        path = write_demo_model(tmp_path / "mine.gguf")
        spawning = await world.lock.holds_up(world.spawn(f"file:{path}"))
        path.unlink()
    with pytest.raises(NotFound):
        await spawning


@pytest.mark.parametrize("named", [REF, f"hf:org/repo@{'c' * 40}"])
async def test_a_model_of_which_a_spawn_is_under_way_is_not_deleted(world: World, named: str):
    async with world.lock:
        spawning = await world.lock.holds_up(world.spawn(named))
        deleting = await world.lock.holds_up(world.models.delete(REF, None))
    worker = await spawning
    with pytest.raises(Conflict, match="in use by 1 worker") as error:
        await deleting
    assert error.value.details["workers"] == [worker.id]
    assert world.path.exists()


async def test_a_worker_whose_download_has_just_ended_has_its_model(world: World):
    worker = await world.spawn(f"hf:org/repo@{'c' * 40}")
    (kept,) = await world.workers.all()
    kept.record.model_path = None
    assert world.workers.using(REF, NAME, world.path) == [worker.id]


async def test_a_model_that_is_downloaded_again_is_not_deleted_for_an_earlier_failure(world: World):
    world.path.unlink()
    failed = await world.downloads.request(refs.parse(REF), "rest")
    failed.record.status = service.DownloadStatus.FAILED
    part = model_cache.part_file(world.cache, "org/repo", "a" * 64)
    part.write_bytes(b"GGUF")
    assert [model.status.value for model in await world.models.all()] == ["incomplete"]
    await world.downloads.request(refs.parse(REF), "rest")
    with pytest.raises(Conflict, match="is being downloaded"):
        await world.models.delete(REF, None)
    assert part.exists()
