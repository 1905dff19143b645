from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from llama_orch.contract.common import Problem
from llama_orch.queen.jobs import STEP_AGAIN_S, Jobs
from llama_orch.queen.store import Store, StoredJob

PROBLEM = Problem(code="x", message="y")


class Work:
    """Notes the pauses of a job; the queen may stop in one."""

    def __init__(self) -> None:
        self.pauses: list[float] = []
        self.stops = False

    async def pause_of(self, _job_id: str, seconds: float) -> None:
        self.pauses.append(seconds)
        if self.stops:
            raise asyncio.CancelledError


class Step:
    """A step that fails this often before it answers."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.done = 0

    async def __call__(self, _job: StoredJob) -> Problem | None:
        self.done += 1
        if self.done <= self.failures:
            raise OSError(28, "No space left on device")
        return PROBLEM


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
async def jobs(tmp_path: Path, work: Work) -> Jobs:
    store = Store(f"sqlite:///{tmp_path / 'q.sqlite'}")
    await store.open()
    await store.create_job("j", "provision", "n", "c")
    return Jobs(store, cast("Any", work), cast("Any", None), tmp_path / "dbos.sqlite", 1)


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
