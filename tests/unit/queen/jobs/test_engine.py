from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from llama_orch.contract.common import Problem
from llama_orch.contract.queen import JobStatus
from llama_orch.queen.jobs.engine import STEP_AGAIN_S, Jobs
from llama_orch.queen.records import JobRecord
from llama_orch.queen.store.store import Store

PROBLEM = Problem(code="x", message="y")


class Running:
    """A job in memory that notes its pauses; the queen may stop in one."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self.interrupt = asyncio.Event()

    async def pause(self, seconds: float) -> None:
        self._work.pauses.append(seconds)
        if self._work.stops:
            raise asyncio.CancelledError


class Work:
    """Keeps jobs in memory, and does nothing for them."""

    def __init__(self) -> None:
        self.pauses: list[float] = []
        self.stops = False
        self.stopping = False
        self.kept: dict[str, Running] = {}

    def running(self, job_id: str) -> Running:
        return self.kept.setdefault(job_id, Running(self))

    def forget(self, job_id: str) -> None:
        del self.kept[job_id]


class Step:
    """A step that fails this often before it answers."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.done = 0

    async def __call__(self, _job: JobRecord) -> Problem | None:
        self.done += 1
        if self.done <= self.failures:
            raise OSError(28, "No space left on device")
        return PROBLEM


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
async def jobs(tmp_path: Path, work: Work) -> AsyncIterator[Jobs]:
    store = Store(f"sqlite:///{tmp_path / 'q.sqlite'}")
    await store.open()
    await store.jobs.create("j", "provision", "n", "c")
    yield Jobs(store, cast("Any", work), cast("Any", None), cast("Any", None), 1)
    await store.close()


async def test_a_step_that_fails_for_a_moment_is_done_again(jobs: Jobs, work: Work):
    assert await jobs.step("j", Step(len(STEP_AGAIN_S))) == PROBLEM.model_dump()
    assert work.pauses == list(STEP_AGAIN_S)
    steps = Step(0)
    await jobs.step("j", steps)
    assert steps.done == 1


async def test_a_step_that_always_fails_is_given_up(jobs: Jobs):
    step = Step(100)
    with pytest.raises(OSError, match="No space"):
        await jobs.step("j", step)
    assert step.done == len(STEP_AGAIN_S) + 1


async def test_a_queen_that_stops_leaves_a_failing_step_for_the_next_start(jobs: Jobs, work: Work):
    work.stops = True
    with pytest.raises(asyncio.CancelledError):
        await jobs.step("j", Step(100))


async def test_of_nodes_that_no_job_works_on_nothing_is_kept(jobs: Jobs, work: Work, tmp_path: Path):
    store = vars(jobs)["_store"]
    for number in range(50):
        await store.jobs.create(f"j{number}", "provision", f"n{number}", "c")
        job = await store.jobs.get(f"j{number}")
        async with jobs._slot(job):  # pyright: ignore[reportPrivateUsage]
            assert list(vars(jobs)["_nodes"]) == [f"n{number}"]
    assert len(vars(jobs)["_nodes"]) == 0


async def test_two_jobs_of_one_node_wait_for_each_other(jobs: Jobs):
    job = await vars(jobs)["_store"].jobs.get("j")
    begun: list[int] = []

    async def work_on(number: int) -> None:
        async with jobs._slot(job):  # pyright: ignore[reportPrivateUsage]
            begun.append(number)
            await asyncio.sleep(0.01)
            assert begun[-1] == number

    await asyncio.gather(*(work_on(number) for number in range(5)))
    assert begun == list(range(5)) and len(vars(jobs)["_nodes"]) == 0


async def test_a_job_that_ends_while_it_is_cancelled_leaves_nothing(jobs: Jobs, work: Work):
    store = vars(jobs)["_store"]
    cancel = store.jobs.cancel

    async def then_it_ends(job_id: str) -> bool:
        cancelled = await cancel(job_id)
        await store.jobs.end(job_id, JobStatus.CANCELLED, None)
        return cancelled

    store.jobs.cancel = then_it_ends
    assert (await jobs.cancel("j")).status is JobStatus.CANCELLED
    assert work.kept == {}
